"""A Hub id as source: the real client and the real command, against a double of the Hub on loopback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints
from hub_double import COMMIT, online

TOKEN = "hf_secret_token"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    source = checkpoints.llama(tmp_path_factory.mktemp("hub") / "repository")
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# A tiny model\n")
    (source / "pytorch_model.bin").write_bytes(b"a pickle that nobody should fetch")
    return source


@pytest.fixture
def hub(repository, monkeypatch, tmp_path):
    with online(monkeypatch, tmp_path / "home", TOKEN) as double:
        double.add("someone/tiny", repository)
        yield double


@pytest.mark.slow
def test_a_hub_id_is_converted_and_its_revision_pinned(hub, tmp_path):
    command = [Path(sys.executable).with_name("nexus"), "convert", "someone/tiny", "out"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stderr == "", "quiet when piped"
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert report["source"]["name"] == "someone/tiny"
    assert report["source"]["revision"] == COMMIT
    assert report["verification"]["max_abs_logit_difference"] == 0.0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: someone/tiny" in card
    assert "license: apache-2.0" in card
    assert not list((tmp_path / "home").rglob("pytorch_model.bin"))
    written = [file for file in (tmp_path / "out").rglob("*") if file.suffix in (".json", ".md", ".py")]
    assert not any(TOKEN in file.read_text() for file in written)


def test_a_commit_is_converted_and_named_in_the_report(hub, nexus, tmp_path):
    hub.repositories["someone/tiny"].add_commit({"README.md": b"another model"})  # main moves on
    status, _, errors = nexus("convert", "someone/tiny", tmp_path / "out", "--revision", COMMIT, "--no-verify")
    assert status == 0, errors
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert report["source"]["revision"] == COMMIT


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["someone/gated"], ["someone/gated", "gated", "hf auth login"]),
        (["someone/absent"], ["someone/absent", "no such model"]),
        (["someone/tiny", "--revision", "nope"], ["someone/tiny", "no revision 'nope'"]),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(arguments, parts, hub, nexus, tmp_path):
    status, output, errors = nexus("convert", arguments[0], tmp_path / "out", *arguments[1:])
    assert (status, output) == (1, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert TOKEN not in errors
    for part in parts:
        assert part in errors
    assert not (tmp_path / "out").exists()
