"""What is at the output, and beside it, whatever stops a command or comes in its way. Nothing of the user's is lost."""

import os
import shutil
import tempfile
from itertools import count
from pathlib import Path

import pytest

from killed import is_killed, states
from nexus_transformers.conversion_scripts.checkpoint.files import read_json, write_json
from nexus_transformers.conversion_scripts.checkpoint.output import staged_output
from nexus_transformers.conversion_scripts.checkpoint.place import check_output, output_path
from nexus_transformers.errors import CheckpointError

OLD = {"config.json": "old", "weights": "old", "folder/more": "old"}
NEW = {"config.json": "new", "weights": "new", "folder/more": "new", "another": "new"}


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def check(out: Path, **options) -> None:
    check_output(out, "a model", lambda folder: True, **options)


def write(out: Path, files: dict[str, str] = NEW, fails: bool = False) -> None:
    """A command that replaces what is at `out`."""
    check(out)
    with staged_output(out, {"made of": files}) as (folder, resume):
        put(folder, files)
        resume.add("weights", {"bytes": 3})
        if fails:
            raise CheckpointError("it fails")


def fail(out: Path) -> None:
    with pytest.raises(CheckpointError, match="it fails"):
        write(out, fails=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def left_by_kills(tmp_path_factory):
    """For every step of replacing a model: the folder in which a process was killed before that step."""
    place = tmp_path_factory.mktemp("killed")
    put(place / "rehearsal", OLD)
    write(place / "rehearsal")  # all is imported
    folders = []
    for step in count(1):
        folder = place / str(step)
        put(folder / "out", OLD)
        if not is_killed(lambda folder=folder: write(folder / "out"), step):
            assert contents(folder / "out") == NEW
            return folders
        folders.append(folder)


@pytest.fixture
def left(left_by_kills, tmp_path):
    """Copies of them."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in left_by_kills]


def test_a_kill_leaves_the_old_or_the_new_model_or_puts_the_old_one_away(left):
    seen = [contents(folder / "out") for folder in left]
    assert all(each in (OLD, NEW, {}) for each in seen)
    assert seen.count(OLD) > 10 and seen.count(NEW) > 5
    assert seen.count({}) == 1, "between the two renames"


def test_after_a_kill_the_same_command_writes_the_new_model(left):
    for folder in left:
        write(folder / "out")
        assert contents(folder / "out") == NEW
        assert names(folder) == ["out"]


def test_after_a_kill_a_command_that_fails_leaves_the_old_or_the_new_model(left):
    for folder in left:
        before = contents(folder / "out") or OLD
        fail(folder / "out")
        assert contents(folder / "out") == before
        assert names(folder) == ["out"]


def test_after_a_kill_a_command_that_has_nothing_to_do_leaves_no_model_in_hiding(left):
    for folder in left:
        before = contents(folder / "out") or OLD
        check(folder / "out")
        assert contents(folder / "out") == before
        work = folder / ".out.incomplete"
        assert not (work / "replaced").exists()
        assert not work.exists() or (work / "model").exists(), "which the same command would continue"


def test_what_the_user_has_removed_since_does_not_come_back(left):
    for folder in left:
        was_put_away = not (folder / "out").exists()
        if not was_put_away:
            (folder / "out").rename(folder / "moved")
        fail(folder / "out")
        assert names(folder) == (["out"] if was_put_away else ["moved"])


def test_what_the_user_has_put_there_since_is_kept_and_so_is_the_old_model(left):
    for folder in left:
        was_put_away = not (folder / "out").exists()
        shutil.rmtree(folder / "out", ignore_errors=True)
        put(folder / "out", {"mine": "mine"})
        if was_put_away:
            with pytest.raises(CheckpointError, match=r"What it held then is in .*\.out\.incomplete/replaced; move"):
                write(folder / "out")
            assert contents(folder / ".out.incomplete" / "replaced") == OLD
            (folder / ".out.incomplete" / "replaced").rename(folder / "old")
        fail(folder / "out")
        assert contents(folder / "out") == {"mine": "mine"}
        assert names(folder) == (["old", "out"] if was_put_away else ["out"])


def test_a_second_kill_while_the_first_one_is_mended(left, tmp_path):
    for folder in left:
        if not (folder / ".out.incomplete" / "replaced").exists():
            continue
        before = contents(folder / "out") or OLD
        for step in count(1):
            again = Path(shutil.copytree(folder, tmp_path / "again" / f"{folder.name}-{step}"))
            killed = is_killed(lambda again=again: check(again / "out"), step)
            fail(again / "out")
            assert contents(again / "out") == before
            assert names(again) == ["out"]
            if not killed:
                break


def test_what_is_changed_while_the_command_runs_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    put(out, OLD)
    with (
        pytest.raises(CheckpointError, match="was changed while the conversion ran"),
        staged_output(out) as (folder, _),
    ):
        put(folder, NEW)
        put(out, {"mine": "mine"})
    assert contents(out) == {**OLD, "mine": "mine"}
    assert names(tmp_path) == ["out"]


def test_a_folder_with_more_than_a_model_is_not_replaced(llama_folder, tmp_path, nexus):
    out = tmp_path / "out"
    assert nexus("convert", llama_folder, out, "--no-verify")[0] == 0
    for name in ("notes.txt", "checkpoint-5/optimizer.pt", ".git/HEAD", "training_args.bin"):
        put(out, {name: "mine"})
        for options in (["--order", "3"], ["--order", "2"]):
            status, _, errors = nexus("convert", llama_folder, out, *options, "--overwrite", "--no-verify")
            assert status == 1 and f"holds {name}, which this command did not write" in errors
            assert (out / name).read_text() == "mine"
        shutil.rmtree(out / name.split("/")[0]) if "/" in name else (out / name).unlink()
    put(out, {".README.md.new": "cut off"})  # by a kill
    assert nexus("convert", llama_folder, out, "--no-verify")[1].count("already complete") == 1
    assert nexus("convert", llama_folder, out, "--order", "3", "--overwrite", "--no-verify")[0] == 0
    assert not (out / ".README.md.new").exists()


def test_a_kill_while_a_file_is_written_leaves_the_old_one_or_the_new_one(tmp_path):
    (tmp_path / "place").mkdir()
    file = tmp_path / "place" / "report.json"
    write_json(file, {"is": "old"})
    seen = [
        state / "report.json" for state in states(lambda: write_json(file, {"is": "new"}), file.parent, tmp_path / "x")
    ]
    assert {read_json(each)["is"] for each in [*seen, file]} == {"old", "new"}
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "link").symlink_to("elsewhere")
    write_json(tmp_path / "link", {})
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_a_failure_removes_the_parents_that_it_made_and_only_those(tmp_path):
    (tmp_path / "mine").mkdir()
    fail(tmp_path / "mine" / "a" / "b" / "out")
    assert names(tmp_path) == ["mine"] and names(tmp_path / "mine") == []
    with pytest.raises(CheckpointError, match=r"File name too long\)\. Nothing was left behind\."):
        with staged_output(tmp_path / "a" / ("x" * 300)):
            pass
    assert names(tmp_path) == ["mine"]
    with pytest.raises(KeyboardInterrupt), staged_output(tmp_path / "a" / "out"):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a", "mine"], "to be continued"


def test_the_folder_of_other_things_that_has_the_hidden_name_keeps_them(tmp_path):
    put(tmp_path / ".out.incomplete", {"mine": "mine"})
    write(tmp_path / "out")
    fail(tmp_path / "out")
    assert contents(tmp_path / ".out.incomplete") == {"mine": "mine"}
    put(tmp_path / "elsewhere", {"model/weights": "mine"})
    (tmp_path / ".link.incomplete").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="symbolic link, and this is where"):
        write(tmp_path / "link")
    assert contents(tmp_path / "elsewhere") == {"model/weights": "mine"}


@pytest.mark.parametrize("named", [".", "../out", "..", "../../{place}/out", "../link", "{out}", ""])
def test_the_folder_that_one_is_in_is_not_written_to(named, tmp_path, monkeypatch):
    out = tmp_path / "out"
    put(out, OLD)
    (tmp_path / "link").symlink_to(out)
    monkeypatch.chdir(out)
    with pytest.raises(CheckpointError, match=r"is the folder you are in, or holds it|is a symbolic link"):
        write(output_path(named.format(place=tmp_path.name, out=out)))
    assert contents(out) == OLD
    assert Path.cwd() == out


def test_the_command_refuses_the_folder_that_one_is_in_before_any_work(tmp_path, monkeypatch, nexus):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    for command in (
        ["convert", "nobody/nothing", "../out", "--overwrite"],
        ["convert", "nothing", ".", "--to-source"],
        ["inspect", "nobody/nothing", "a prompt", "--out", ".."],
        ["tokenizer", "train", "nothing.txt", "--out", ".", "--vocab-size", "300"],
    ):
        status, output, errors = nexus(*command)
        assert (status, output, errors.count("\n")) == (1, "", 1)
        assert "is the folder you are in" in errors


def test_home_is_home_in_every_command(llama_folder, tmp_path, monkeypatch, nexus):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "text.txt").write_text("some text " * 99)
    assert nexus("convert", llama_folder, "~/out", "--no-verify")[0] == 0
    assert nexus("convert", "~/out", "~/back", "--to-source", "--no-verify")[0] == 0
    assert nexus("tokenizer", "train", "~/text.txt", "--out", "~/words", "--vocab-size", "270")[0] == 0
    assert names(tmp_path) == ["back", "out", "text.txt", "words"]
    for command in (
        ["verify", llama_folder, "~/no"],
        ["push", "~/no", "a/b"],
        ["inspect", "~/no", "x", "--out", "~/i"],
    ):
        status, _, errors = nexus(*command)
        assert status == 1 and not Path("~").exists()
        assert "~/no: no such folder" in errors or f"{tmp_path}/no: " in errors
    assert "~nobody-here/out: has no home folder" in nexus("convert", llama_folder, "~nobody-here/out")[2]


@pytest.mark.parametrize(
    ("name", "message"),
    [("x" * 250, "File name too long"), ("x" * 300, "File name too long"), (os.fsdecode(b"\xff"), "not UTF-8")],
)
def test_names_that_cannot_be_written_are_refused_at_once(name, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as failure:
        check(output_path(tmp_path / name))
    assert str(failure.value).isprintable()
    assert names(tmp_path) == []


def test_a_circle_of_links_is_no_path(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(CheckpointError, match=r"is no path to a folder|symbolic link"):
        check(output_path(tmp_path / "a" / "out"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without permissions")
def test_what_may_not_be_entered_or_replaced_is_refused_at_once():
    """As the user nobody."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o777)
        put(Path(place, "out"), OLD)
        Path(place, "closed").mkdir(mode=0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(CheckpointError, match="out: is read-only"):
                check(Path(place, "out"))
            with pytest.raises(CheckpointError, match=r"could not be written \(Permission denied\)"):
                check(Path(place, "closed", "out"))
            with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
                check(Path(place, "new"), inputs=[Path(place, "closed", "source")])
        finally:
            os.seteuid(0)


@pytest.mark.parametrize(
    "name",
    [
        "licenses/optimizer.pt",
        "model-epoch3/model-00001-of-00002.safetensors",
        "license_dataset.parquet",
        "license_plates.npy",
        "notices.log",
        "license.h5",
        "LICENSE_head.safetensors",
        "notice/checkpoint-500/model.safetensors",
        ".cache/mine.new",
        "additional_chat_templates/notes.txt",
    ],
)
def test_a_model_with_files_of_the_user_s_is_not_replaced(name, model, llama_folder, tmp_path, nexus):
    (model / "LICENSE.md").write_text("terms")  # of which the source has none any more
    put(model, {name: "mine"})
    status, output, errors = nexus("convert", llama_folder, model, "--order", "1", "--overwrite", "--no-verify")
    assert (status, output) == (1, "") and f"holds {name}, which this command did not write" in errors
    assert (model / name).read_text() == "mine"
    (model / name).unlink()
    assert nexus("convert", llama_folder, model, "--order", "1", "--overwrite", "--no-verify")[0] == 0
    assert not (model / "LICENSE.md").exists()
