"""Files that are none, and such as cannot be read to their end, are refused in one sentence; nothing waits for them."""

import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

import checkpoints
from nexus_transformers.conversion_scripts.checkpoint.files import LARGEST, READ_WHOLE


@pytest.fixture(autouse=True)
def patience():
    """A command that waits for a pipe fails its test."""

    def fail(*_):
        raise AssertionError("this command waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def source(llama_folder, tmp_path):
    return Path(shutil.copytree(llama_folder, tmp_path / "source"))


def make_pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def refused(result, file: Path, part: str) -> None:
    status, output, errors = result
    assert (status, output, errors.count("\n")) == (1, "", 1), errors
    assert errors.startswith(f"error: {file}: ") and part in errors


NAMES = [*READ_WHOLE, "model.safetensors", "LICENSE", "other", "adapter_config.json", "model.gguf"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_is_refused_wherever_it_lies(name, source, model, llama_folder, nexus, tmp_path):
    out = tmp_path / "out"
    make_pipe(source / name)
    make_pipe(model / name)
    what = "is a pipe, a socket or a device and not a file; remove it."
    refused(nexus("convert", source, out), source / name, what)
    refused(nexus("convert", source, out, "--dry-run"), source / name, what)
    refused(nexus("verify", llama_folder, model), model / name, what)
    refused(nexus("convert", model, out, "--to-source"), model / name, what)
    refused(nexus("inspect", model, "word", "--out", out), model / name, what)
    refused(nexus("push", model, "someone/model"), model / name, what)
    assert not out.exists()


def test_sockets_and_links_to_pipes_and_pipes_in_folders_are_refused_too(source, nexus, tmp_path, monkeypatch):
    (source / "folder").mkdir()
    make_pipe(source / "folder" / "pipe")
    refused(nexus("convert", source, tmp_path / "out"), source / "folder" / "pipe", "is a pipe")
    shutil.rmtree(source / "folder")
    monkeypatch.chdir(source)  # the name of a socket has at most 108 characters
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        refused(nexus("convert", source, tmp_path / "out"), source / "socket", "a socket")
    (source / "socket").unlink()
    (source / "LICENSE").symlink_to("/dev/zero")
    refused(nexus("convert", source, tmp_path / "out"), source / "LICENSE", "is a symbolic link out of the folder")
    (source / "LICENSE").unlink()
    (source / "config.json").unlink()
    (source / "config.json").symlink_to("config.json")
    refused(nexus("convert", source, tmp_path / "out"), source / "config.json", "cannot be read (Too many levels")


@pytest.mark.parametrize("name", ["config.json", "conversion_report.json", "index.html"])
def test_a_pipe_in_the_output_is_not_ours_to_replace(name, llama_folder, model, nexus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    make_pipe(out / name)
    for command in (
        ["convert", llama_folder, out, "--overwrite"],
        ["convert", model, out, "--to-source", "--overwrite"],
        ["inspect", model, "word", "--out", out],
    ):
        status, _, errors = nexus(*command)
        assert (status, errors.count("\n")) == (1, 1)
        assert "did not write" in errors


def test_of_what_lies_beside_a_gguf_file_only_the_card_is_read(nexus, tmp_path):
    gguf_file = pytest.importorskip("gguf_file")
    file = gguf_file.write(tmp_path / "model.gguf")
    for name in ("other", "tokenizer_config.json", "README.md"):  # in a folder of downloads, say
        make_pipe(tmp_path / name)
    refused(nexus("convert", file, tmp_path / "out"), tmp_path / "README.md", "is a pipe")
    (tmp_path / "README.md").unlink()
    status, _, errors = nexus("convert", file, tmp_path / "out", "--no-verify")
    assert status == 0, errors


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "README.md"])
def test_text_without_end_is_not_read(name, source, nexus, tmp_path):
    (source / name).touch()
    os.truncate(source / name, LARGEST + 1)
    refused(nexus("convert", source, tmp_path / "out"), source / name, "has more than 256 MB, which no such file needs")


def test_metadata_that_are_nested_too_deep_are_not_valid(source, model, nexus, tmp_path):
    for folder in (source, model):
        (folder / "README.md").write_text(f"---\nlicense: {'[' * 9999}\n---\n# A card\n")
    status, _, errors = nexus("convert", source, tmp_path / "out", "--dry-run")
    assert (status, errors) == (0, "")
    refused(nexus("push", model, "someone/model"), model / "README.md", "its metadata are not valid")


def test_a_large_file_of_another_kind_is_left_alone(tmp_path, nexus):
    source = checkpoints.llama(tmp_path / "source")
    (source / "data.json").touch()
    os.truncate(source / "data.json", LARGEST + 1)
    status, _, errors = nexus("convert", source, tmp_path / "out", "--no-verify")
    assert status == 0, errors
