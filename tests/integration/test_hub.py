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


def test_a_dry_run_reads_the_headers_of_the_weights_only(hub, nexus, tmp_path):
    status, output, errors = nexus("convert", "someone/tiny", tmp_path / "out", "--dry-run", "--json")
    assert (status, errors) == (0, "")
    whole = checkpoints.SHAPE["vocab_size"] * checkpoints.SHAPE["hidden_size"] * 4
    assert json.loads(output)["source"]["bytes"] > whole
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    plan = json.loads(output)
    assert nexus("convert", "someone/tiny", tmp_path / "out", "--no-verify")[0] == 0
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert plan["model"]["parameters"] == report["model"]["parameters"]
    assert list((tmp_path / "home").rglob("*.safetensors")), "now they are there"


def test_copies_that_nobody_reads_are_not_downloaded(hub, nexus, tmp_path):
    copies = {"consolidated.safetensors": b"x", "original/other.safetensors": b"x", "onnx/other.json": b"{}"}
    hub.repositories["someone/tiny"].add_commit(hub.files("someone/tiny") | copies)
    status, _, errors = nexus("convert", "someone/tiny", tmp_path / "out", "--no-verify")
    assert (status, errors) == (0, "")
    asked_for = [path for _, path in hub.requests]
    assert any(path.endswith("/model.safetensors") for path in asked_for)
    assert not any(path.endswith(tuple(copies)) for path in asked_for)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"tiny.Q4.gguf": b"GGUF"}, "has GGUF files only"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, "holds an adapter only"),
        ({"pytorch_model.bin": b"x"}, "has pickled weights only"),
        ({}, "has no weights"),
    ],
    ids=["gguf", "adapter", "pickle", "none"],
)
@pytest.mark.parametrize("dry", [True, False], ids=["dry", "real"])
def test_a_repository_without_weights_is_refused_with_what_it_has(files, reason, dry, hub, nexus, tmp_path):
    config = hub.files("someone/tiny")["config.json"]
    hub.repositories["someone/tiny"].add_commit({"config.json": config, **files})
    status, _, errors = nexus("convert", "someone/tiny", tmp_path / "out", *["--dry-run"] * dry)
    assert (status, errors.count("\n")) == (1, 1)
    assert errors.startswith(f"error: someone/tiny: {reason}")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"adapter_config.json": b"{}"}, "has adapter_config.json beside full weights"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}'}, "has both model.safetensors and"),
        ({"config.json": None}, "has no config.json"),
        (
            {"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}'},
            "lacks the shard b.safetensors",
        ),
    ],
    ids=["adapter", "two sets", "no config", "shard"],
)
@pytest.mark.parametrize("dry", [True, False], ids=["dry", "real"])
def test_what_is_wrong_with_a_repository_is_said_of_its_id(files, reason, dry, hub, nexus, tmp_path):
    """Not of a folder in the cache, or of one that is gone by then."""
    changed = hub.files("someone/tiny") | files
    hub.repositories["someone/tiny"].add_commit({name: data for name, data in changed.items() if data is not None})
    status, _, errors = nexus("convert", "someone/tiny", tmp_path / "out", *["--dry-run"] * dry)
    assert (status, errors.count("\n")) == (1, 1)
    assert errors.startswith(f"error: someone/tiny: {reason}")


@pytest.mark.parametrize("dry", [True, False], ids=["dry", "real"])
@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({}, "has no weight_map"),
        (
            {"weight_map": {"a": "part/b.safetensors"}},
            "names the shard 'part/b.safetensors', which does not lie beside it",
        ),
    ],
    ids=["no map", "folder"],
)
def test_an_index_that_is_of_no_use_is_named_by_its_repository(index, reason, dry, hub, nexus, tmp_path):
    changed = hub.files("someone/tiny") | {"model.safetensors.index.json": json.dumps(index).encode()}
    del changed["model.safetensors"]
    hub.repositories["someone/tiny"].add_commit(changed)
    status, _, errors = nexus("convert", "someone/tiny", tmp_path / "out", *["--dry-run"] * dry)
    assert (status, errors.count("\n")) == (1, 1)
    assert errors.startswith(f"error: someone/tiny/model.safetensors.index.json: {reason}")


def test_what_lies_in_the_cache_needs_no_network(hub, nexus, tmp_path, monkeypatch):
    """Nor a copy of the weights, for a plan."""
    assert nexus("convert", "someone/tiny", tmp_path / "out", "--no-verify")[0] == 0
    hub.requests.clear()
    assert nexus("convert", "someone/tiny", tmp_path / "out", "--dry-run")[0] == 0
    assert not any(path.endswith(".safetensors") or "/tree/" in path for _, path in hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for options in (["--dry-run"], ["--no-verify", "--overwrite"]):
        status, _, errors = nexus("convert", "someone/tiny", tmp_path / "out", *options)
        assert (status, errors) == (0, "")
