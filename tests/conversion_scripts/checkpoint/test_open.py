"""What is no Nexus model of this version is refused by every command that takes one."""

import json

import pytest

from nexus_transformers.conversion_scripts.convert import convert

OLD_NAMES = {"inner_scale": "normalize_source", "inner_gate": "source_gate", "inner_gate_init": "source_gate_init"}
NEW_FIELDS = ("inner_attention", "inner_output_projection", "refine_value")


@pytest.fixture(scope="module")
def of_version_0_1(llama_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("old") / "model"
    convert(llama_folder, folder, verify=False)
    config = json.loads((folder / "config.json").read_text())
    config = {OLD_NAMES.get(name, name): value for name, value in config.items() if name not in NEW_FIELDS}
    (folder / "config.json").write_text(json.dumps(config | {"share_projections": True}))
    return folder


@pytest.mark.parametrize("command", ["verify", "to-source", "push", "inspect"])
def test_a_model_of_version_0_1_is_refused_in_one_sentence(command, of_version_0_1, llama_folder, tmp_path, nexus):
    arguments = {
        "verify": ("verify", llama_folder, of_version_0_1),
        "to-source": ("convert", of_version_0_1, tmp_path / "back", "--to-source"),
        "push": ("push", of_version_0_1, "someone/nexus"),
        "inspect": ("inspect", of_version_0_1, "Hello", "--out", tmp_path / "page"),
    }
    status, output, errors = nexus(*arguments[command])
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith(f"error: {of_version_0_1 / 'config.json'}: This is a model of Nexus 0.1")
    assert "convert its source again" in errors and errors.endswith("is not installed.\n")
    assert list(tmp_path.iterdir()) == []
