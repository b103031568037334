"""However the command ends: one sentence, exit status 1, no traceback, and on the terminal only text."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import checkpoints
from nexus_transformers.conversion_scripts import edge
from nexus_transformers.errors import NexusError

EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\u2066\nerror: all is well\r"


@pytest.fixture
def ended(monkeypatch, capsys):
    """`ended(command, "nexus", ...)` -> (exit status, stdout, stderr)."""

    def run(command, *arguments):
        monkeypatch.setattr("sys.argv", ["nexus", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            edge.run(command)
        captured = capsys.readouterr()
        return exit_info.value.code, captured.out, captured.err

    return run


def raising(error):
    def command():
        raise error

    return command


class Panic(BaseException):
    """What libraries written in Rust raise."""


@pytest.mark.parametrize("error", [ValueError(f"odd{EVIL}"), MemoryError(), RecursionError("x" * 10**5), Panic("oh")])
def test_what_nobody_foresaw_is_one_sentence(error, ended):
    status, output, errors = ended(raising(error))
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith(f"error: this was not foreseen: {type(error).__name__} (")
    assert "--debug" in errors and len(errors) < 1200 and errors[:-1].isprintable()


@pytest.mark.parametrize("arguments", [["--debug", "push"], ["push", "--debug"]])
@pytest.mark.parametrize("error", [ValueError(f"odd{EVIL}"), NexusError("foreseen")])
def test_debug_shows_the_traceback(arguments, error, ended):
    status, output, errors = ended(raising(error), *arguments)
    assert (status, output) == (1, "")
    assert errors.startswith("Traceback (most recent call last)") and "in command" in errors
    assert all(line.isprintable() for line in errors.split("\n"))
    assert errors.split("\n")[-2].startswith("error: ") and sys.argv == ["nexus", "push"]


def test_what_comes_after_two_dashes_is_no_option(ended):
    assert ended(lambda: None, "inspect", "--", "--debug")[0] == 0
    assert sys.argv[-1] == "--debug"


def test_errors_as_json_are_json_in_ascii(ended):
    status, output, errors = ended(raising(NexusError(f"odd{EVIL}ż")), "push", "--json")
    assert (status, errors) == (1, "")
    assert output.isascii() and "error: all is well" in json.loads(output)["error"]


def test_a_warning_of_a_library_is_one_line(ended):
    status, _, errors = ended(lambda: warnings.warn(f"odd{EVIL}", stacklevel=1))
    assert status == 0
    assert errors.startswith("warning: odd\\x1b[2J") and errors.count("\n") == 1 and errors[:-1].isprintable()


def run_in_a_child(command, stdout, stderr, encoding="utf-8"):
    """With streams as Python opens them, in a process of their own. Returns its exit status."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            for number, name, file in ((1, "stdout", stdout), (2, "stderr", stderr)):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
                setattr(sys, name, open(number, "w", encoding=encoding, buffering=1 if number == 2 else -1))
            sys.argv[:] = ["nexus"]
            edge.run(command)
        except SystemExit as ending:
            sys.stdout.flush()  # as Python does at the end
            sys.stderr.flush()
            status = ending.code or 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("amount", [1, 10**6])
def test_a_disk_that_is_full(amount, tmp_path):
    status = run_in_a_child(lambda: print("x" * amount), "/dev/full", tmp_path / "errors")
    errors = (tmp_path / "errors").read_text()
    assert (status, errors.count("\n")) == (1, 1)
    assert "No space left on device" in errors
    assert run_in_a_child(lambda: print("x" * amount), "/dev/full", "/dev/full") == 1
    assert run_in_a_child(raising(NexusError("foreseen")), tmp_path / "out", "/dev/full") == 1


def test_a_terminal_of_ascii(tmp_path):
    out, errors = tmp_path / "out", tmp_path / "errors"
    assert run_in_a_child(lambda: print("max |Δlogit|"), out, errors, "ascii") == 0
    assert out.read_text() == "max |\\u0394logit|\n" and errors.read_text() == ""
    assert run_in_a_child(raising(NexusError("Zażółć")), out, errors, "ascii") == 1
    assert errors.read_text() == "error: Za\\u017c\\xf3\\u0142\\u0107\n"


@pytest.mark.slow
def test_the_real_command_on_closed_and_full_outputs(llama_folder, tmp_path):
    nexus = Path(sys.executable).with_name("nexus")
    convert = f"{nexus} convert {llama_folder} {tmp_path / 'out'}"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for command, status, lines in (
        (f"{convert} --dry-run > /dev/full", 1, 1),
        (f"{convert} --no-verify >&-", 0, 0),
    ):
        process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ascii_only)
        assert (process.returncode, process.stderr.count("\n")) == (status, lines), process.stderr
    assert (tmp_path / "out" / "config.json").exists()


def config_key(source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {EVIL: EVIL}))


def config_value(source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": EVIL * 1000}))


def tensor_name(source):
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {EVIL: next(iter(tensors.values())).clone()}, source / "model.safetensors")


def shard_name(source):
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": EVIL}}))


def long_tensor_name(source):
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {"x" * 10**6: next(iter(tensors.values())).clone()}, source / "model.safetensors")


def tokenizer_class(source):
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": EVIL, "auto_map": [EVIL, EVIL]}))


def file_name(source):
    (source / f"{EVIL}.gguf").write_text("")
    (source / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "edit", [config_key, config_value, tensor_name, long_tensor_name, shard_name, tokenizer_class, file_name]
)
def test_what_stands_in_a_checkpoint_does_nothing_to_the_terminal(edit, llama_folder, tmp_path, nexus):
    source = Path(shutil.copytree(llama_folder, tmp_path / f"so{EVIL.replace('/', '')}urce"))
    edit(source)
    status, output, errors = nexus("convert", source, tmp_path / "out", "--no-verify")
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("error: ") and errors[:-1].isprintable() and len(errors) < 1200


def test_names_are_no_markup(llama_folder, tmp_path, nexus):
    source = Path(shutil.copytree(llama_folder, tmp_path / "[red]a[link=x]b :smile: $x$"))
    (source / f"{EVIL}.txt").write_text("")
    (source / "[blink]").write_text("")
    for options in (["--dry-run"], ["--no-verify"]):
        status, output, errors = nexus("convert", source, tmp_path / "out", *options)
        assert (status, errors) == (0, "")
        assert "[red]a[link=x]b :smile: $x$" in output
        assert all(line.isprintable() for line in output.split("\n"))
    assert "[blink]" in nexus("convert", source, tmp_path / "dry", "--dry-run")[1]


def test_a_warning_of_the_tokenizer_is_escaped(tmp_path, nexus):
    source = checkpoints.llama(tmp_path / "source")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    added = {name: False for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    tokenizer["added_tokens"].append({"id": 512, "content": f"<{EVIL}>", **added})
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    status, output, errors = nexus("convert", source, tmp_path / "out", "--no-verify")
    assert (status, errors) == (0, "")
    assert "Note: The tokenizer has ids up to 512" in output
    assert all(line.isprintable() for line in output.split("\n"))


def test_a_working_directory_that_is_gone_is_said(tmp_path):
    (tmp_path / "gone").mkdir()
    script = f"cd {tmp_path}/gone && rmdir ../gone && exec {Path(sys.executable).with_name('nexus')} --help"
    process = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == "error: The folder that you are in was deleted; go to another one.\n"
