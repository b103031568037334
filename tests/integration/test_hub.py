"""A Hub id as source: the real client and the real command, against a double of the Hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints
from hub_double import COMMIT, hub


@pytest.fixture
def nexus_online(tmp_path):
    """Runs the installed `nexus` in a process of its own, with the double as its Hub and a fresh cache."""
    source = checkpoints.llama(tmp_path / "repository")
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# A tiny model\n")
    (source / "pytorch_model.bin").write_bytes(b"a pickle that nobody should fetch")
    with hub({"someone/tiny": source}) as endpoint:

        def run(*arguments):
            environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
            environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret_token"}
            environment |= {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
            command = [Path(sys.executable).with_name("nexus"), *arguments]
            return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

        yield run


@pytest.mark.parametrize("revision", [[], ["--revision", COMMIT]], ids=["main", "commit"])
def test_a_hub_id_is_converted_and_its_revision_pinned(revision, nexus_online, tmp_path):
    process = nexus_online("convert", "someone/tiny", "out", *revision)
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
    assert not any("hf_secret_token" in file.read_text() for file in written)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["someone/gated"], ["someone/gated", "gated", "hf auth login"]),
        (["someone/absent"], ["someone/absent", "no such model"]),
        (["someone/tiny", "--revision", "nope"], ["someone/tiny", "no revision 'nope'"]),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(arguments, parts, nexus_online, tmp_path):
    process = nexus_online("convert", arguments[0], "out", *arguments[1:])
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert "hf_secret_token" not in process.stderr
    for part in parts:
        assert part in process.stderr
    assert not (tmp_path / "out").exists()
