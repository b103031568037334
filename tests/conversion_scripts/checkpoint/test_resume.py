"""A conversion that was killed at any point continues when it is run again, and ends in the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

import checkpoints
from killed import states
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.errors import CheckpointError

OPTIONS = {"verify": False, "max_shard_size": "30KB"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return checkpoints.llama(tmp_path_factory.mktemp("resume") / "source", max_shard_size="60KB")


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected") / "out"
    convert(source, out, **OPTIONS)
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but card and report, which hold the time; of the report, what is not the time."""
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    read = {name: file.read_bytes() for name, file in files.items() if name != "README.md"}
    report = json.loads(read["conversion_report.json"])
    report["date"] = report["command"] = None
    return read | {"conversion_report.json": json.dumps(report).encode()}


def inodes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in folder.glob("*.safetensors")}


def unfinished(out: Path) -> Path:
    return out.parent / f".{out.name}.incomplete" / "model"


def test_killed_at_every_step(tmp_path):
    """As SIGKILL leaves it before each of the file operations of a conversion; each is continued to the same bytes."""
    source = checkpoints.llama(tmp_path / "source", max_shard_size="60KB", num_hidden_layers=1)
    for file in [*source.glob("tokenizer*"), source / "chat_template.jinja"]:
        file.unlink()  # to load it would take most of the time
    convert(source, tmp_path / "fresh", **OPTIONS)
    expected = contents(tmp_path / "fresh")
    (tmp_path / "place").mkdir()
    left = states(lambda: convert(source, tmp_path / "place" / "out", **OPTIONS), tmp_path / "place", tmp_path / "left")
    assert 25 < len(left), "not the whole of a conversion was gone through"
    resumed = 0
    for folder in left:
        out = folder / "out"
        if out.exists():  # killed while tidying up
            assert contents(out) == expected
        finished = inodes(unfinished(out))
        report = convert(source, out, **OPTIONS)
        assert contents(out) == expected
        assert [path.name for path in folder.iterdir()] == ["out"]
        again = {name: inode for name, inode in inodes(out).items() if finished.get(name) == inode}
        assert set(report.get("resumed", [])) <= set(again), "a finished shard is not written again"
        resumed = max(resumed, len(report.get("resumed", [])))
    assert resumed == len([name for name in expected if name.endswith(".safetensors")])


@pytest.mark.parametrize("limit", [100, 25_000])
def test_killed_in_the_middle_of_a_file(limit, source, expected, tmp_path):
    """The kernel kills it as soon as a file grows beyond the limit."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_DFL);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from nexus_transformers.conversion_scripts.convert import convert;"
        f"convert({str(source)!r}, {str(tmp_path / 'out')!r}, **{OPTIONS!r})"
    )
    process = subprocess.run([sys.executable, "-B", "-c", script], capture_output=True)
    assert process.returncode == -signal.SIGXFSZ
    assert not (tmp_path / "out").exists()
    assert list(unfinished(tmp_path / "out").glob("*.part"))
    convert(source, tmp_path / "out", **OPTIONS)
    assert contents(tmp_path / "out") == expected


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_real_command_stopped_while_it_verifies(number, status, source, tmp_path, nexus):
    """The checking process and its folder go too. All is written by then: the second run verifies what is there."""
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    command = [Path(sys.executable).with_name("nexus"), "convert", source, out, "--max-shard-size", "30KB"]
    environment = os.environ | {"TMPDIR": str(temporary)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while not list(temporary.iterdir()) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.5)
    checks = psutil.Process(process.pid).children()
    assert len(checks) == 1
    process.send_signal(number)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (status, "")
    assert psutil.wait_procs(checks, timeout=30)[1] == []
    assert list(temporary.iterdir()) == []
    assert not out.exists()
    shards = inodes(unfinished(out))
    status, output, _ = nexus(*command[1:])
    assert status == 0
    assert f"{len(shards)} of {len(shards)} shards were there" in output
    assert "max |Δlogit| 0.0" in output
    assert inodes(out) == shards


def interrupt(source, out, **options):
    """A conversion that a kill stops when all shards are written."""
    script = (
        "import os, signal; from nexus_transformers.conversion_scripts import convert as module;"
        "module.carry_over = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
        f"module.convert({str(source)!r}, {str(out)!r}, **{OPTIONS | options!r})"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    return sorted(unfinished(out).glob("*.safetensors"))


def test_a_finished_shard_that_was_damaged_is_written_again(source, expected, tmp_path):
    damaged, *whole = interrupt(source, tmp_path / "out")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    report = convert(source, tmp_path / "out", **OPTIONS)
    assert report["resumed"] == [file.name for file in whole]
    assert contents(tmp_path / "out") == expected


def test_a_source_whose_path_is_spelled_otherwise_is_continued(source, tmp_path, monkeypatch):
    shards = interrupt(source, tmp_path / "out")
    monkeypatch.chdir(source)
    assert convert(f"../{source.name}/", tmp_path / "out", **OPTIONS)["resumed"] == [file.name for file in shards]


@pytest.mark.parametrize("change", ["option", "source"])
def test_what_was_made_of_something_else_is_not_used(change, source, tmp_path):
    source = Path(shutil.copytree(source, tmp_path / "source"))
    interrupt(source, tmp_path / "out")
    options = dict(OPTIONS)
    if change == "option":
        options["gate_init"] = 0.5
    else:
        checkpoints.llama(source, max_shard_size="60KB", initializer_range=0.1)
    report = convert(source, tmp_path / "out", **options)
    assert report["resumed"] == []
    convert(source, tmp_path / "fresh", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_the_model_that_was_there_is_put_back_if_the_last_rename_was_not_reached(source, tmp_path):
    convert(source, tmp_path / "out", **OPTIONS)
    before = contents(tmp_path / "out")
    work = tmp_path / ".out.incomplete"
    work.mkdir()
    (tmp_path / "out").rename(work / "replaced")  # as a kill between the two renames leaves it
    (work / "model").mkdir()
    broken = checkpoints.llama(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        convert(broken, tmp_path / "out", overwrite=True, **OPTIONS)
    assert contents(tmp_path / "out") == before
    assert not (work / "replaced").exists()


def test_run_again_it_says_that_nothing_is_to_be_done(source, tmp_path, nexus):
    out = tmp_path / "out"
    arguments = ("convert", source, out, "--no-verify", "--max-shard-size", "30KB")
    assert nexus(*arguments)[0] == 0
    times = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    os.utime(source / "config.json")  # its content counts, not its time
    status, output, errors = nexus(*arguments)
    assert (status, errors) == (0, "")
    assert "already complete" in output
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == times

    status, output, _ = nexus(*(argument for argument in arguments if argument != "--no-verify"))
    assert (status, "already complete" in output, "max |Δlogit| 0.0" in output) == (0, True, True)
    assert json.loads((out / "conversion_report.json").read_text())["verification"]["max_abs_logit_difference"] == 0.0


@pytest.mark.parametrize("what", ["weights", "config.json", "a file more", "order", "source"])
def test_a_model_that_is_another_one_is_not_complete(what, source, tmp_path, nexus):
    source = Path(shutil.copytree(source, tmp_path / "source"))
    out = tmp_path / "out"
    arguments = ["convert", source, out, "--no-verify"]
    assert nexus(*arguments)[0] == 0
    if what == "weights":
        content = bytearray((out / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (out / "model.safetensors").write_bytes(content)
    elif what == "config.json":
        (out / what).write_text((out / what).read_text().replace('"silu"', '"gelu"'))
    elif what == "a file more":
        (out / "trainer_state.json").write_text("{}")
    elif what == "order":
        arguments += ["--order", "3"]
    else:
        generation_config = source / "generation_config.json"
        generation_config.write_text(generation_config.read_text().replace("0.7", "0.8"))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    status, _, errors = nexus(*arguments)
    assert status == 1
    # a file of the user's is not replaced, whatever is passed
    expected = "holds trainer_state.json" if what == "a file more" else "pass --overwrite to replace it"
    assert expected in errors
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_two_converters_on_one_output(source, tmp_path, nexus):
    work = tmp_path / ".out.incomplete"
    work.mkdir()
    with FileLock(work / "lock"):
        status, output, errors = nexus("convert", source, tmp_path / "out", "--no-verify")
        assert (status, output) == (1, "")
        assert "another conversion is writing to it" in errors
    assert nexus("convert", source, tmp_path / "out", "--no-verify")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
