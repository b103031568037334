"""Code in a model's folder: ours is run, nothing else is unless the user says so, and a tokenizer's never."""

import ast
import json
import re
from pathlib import Path

import pytest

import checkpoints
from nexus_transformers.conversion_scripts.checkpoint.code import RELEASED
from nexus_transformers.conversion_scripts.checkpoint.files import CODE_FILES, ROOT
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.conversion_scripts.to_source import convert_to_source
from nexus_transformers.conversion_scripts.verification.verify import compare_tensors, verify
from nexus_transformers.errors import CheckpointError


def mark(file: Path, marker: Path) -> None:
    """Puts a line into a Python file, new or not, that leaves a trace if it is run."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"open({str(marker)!r}, 'w').close()\n" + (file.read_text() if file.exists() else ""))


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | changes))


def changed_model(model, marker):
    mark(model / "modeling_nexus.py", marker)
    return "modeling_nexus.py"


def changed_configuration(model, marker):
    mark(model / "configuration_nexus.py", marker)
    return "configuration_nexus.py"


def code_for_generate(model, marker):
    mark(model / "custom_generate" / "generate.py", marker)
    return "custom_generate/generate.py"


def code_that_looks_otherwise(model, marker):
    mark(model / "evil.PY", marker)
    return "evil.PY"


def code_from_elsewhere(model, marker):
    mark(model.parent / "elsewhere" / "evil.py", marker)
    auto_map = json.loads((model / "config.json").read_text())["auto_map"]
    edit_json(model / "config.json", auto_map={**auto_map, "AutoModel": f"{model.parent}/elsewhere/evil.Evil"})
    return "config.json"


@pytest.mark.parametrize(
    "change",
    [changed_model, changed_configuration, code_for_generate, code_that_looks_otherwise, code_from_elsewhere],
)
def test_foreign_code_is_refused_by_every_command_and_nothing_of_it_runs(
    change, model, llama_folder, nexus, tmp_path, monkeypatch
):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to whoever asks
    marker, out = tmp_path / "ran", tmp_path / "out"
    name = change(model, marker)
    for command in (
        ["verify", llama_folder, model],
        ["convert", model, out, "--to-source"],
        ["convert", model, out, "--to-source", "--no-verify"],
        ["inspect", model, "word", "--out", out],
        ["push", model, "someone/model"],
        ["push", model, "someone/model", "--dry-run"],
    ):
        status, output, errors = nexus(*command)
        assert (status, output, errors.count("\n")) == (1, "", 1), errors
        if name == "config.json" and command[0] == "push":
            assert f"{model / name}: auto_map does not say" in errors
            continue
        assert errors.startswith(f"error: {model / name}: ")
        assert "nothing was run" in errors
        assert ("remove it" if command[0] == "inspect" else "pass --trust-remote-code") in errors
    assert not marker.exists() and not out.exists()


def another_config(model, marker):
    """Which Transformers reads instead, and which leads to code that nobody has looked at."""
    elsewhere, config = model.parent / "elsewhere", json.loads((model / "config.json").read_text())
    for name in CODE_FILES:
        mark(elsewhere / name, marker)
        (elsewhere / name).write_text((elsewhere / name).read_text() + (model / name).read_text())
    auto_map = {name: f"{elsewhere}--{reference}" for name, reference in config["auto_map"].items()}
    (model / "config.4.0.0.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    edit_json(model / "config.json", configuration_files=["config.4.0.0.json"])
    return model, "config.json: configuration_files=['config.4.0.0.json'] leads"


def other_weights(model, marker):
    edit_json(model / "config.json", transformers_weights="adapter_model.bin")
    return model, "config.json: transformers_weights='adapter_model.bin' leads"


def a_kernel(model, marker):
    edit_json(model / "config.json", _attn_implementation="kernels-community/flash-attn2")
    return model, "config.json: _attn_implementation='kernels-community/flash-attn2' names a kernel"


def quantized(model, marker):
    edit_json(model / "config.json", quantization_config={"quant_method": "mxfp4"})  # which loads kernels
    return model, "is quantized (mxfp4)"


def a_folder_among_blobs(model, marker):
    """As the Hub's cache is laid out, where links lead out of the folder."""
    mark(model.parent / "blobs" / "generate.py", marker)
    (model.parent / "snapshots").mkdir()
    model = model.rename(model.parent / "snapshots" / "model")
    (model / "custom_generate").symlink_to("../../blobs")
    return model, "custom_generate: is a symbolic link out of the folder"


@pytest.mark.parametrize("change", [another_config, other_weights, a_kernel, quantized, a_folder_among_blobs])
def test_what_leads_past_the_files_that_are_checked_is_refused(change, model, llama_folder, nexus, tmp_path):
    model, message = change(model, tmp_path / "ran")
    for command in (
        ["verify", llama_folder, model],
        ["convert", model, tmp_path / "out", "--to-source"],
        ["inspect", model, "word", "--out", tmp_path / "out"],
        ["push", model, "someone/model", "--dry-run"],
    ):
        status, output, errors = nexus(*command)
        assert (status, output, errors.count("\n")) == (1, "", 1)
        assert message in errors
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_a_source_that_names_a_kernel_is_refused(tmp_path, nexus):
    source = checkpoints.llama(tmp_path / "source")
    edit_json(source / "config.json", attn_implementation="kernels-community/flash-attn2")
    status, _, errors = nexus("convert", source, tmp_path / "out", "--no-verify")
    assert status == 1 and "names a kernel on the Hub" in errors


def test_what_is_run_is_what_was_checked_though_the_folder_changes(model, llama_folder, tmp_path, monkeypatch):
    def compare(*arguments):
        changed_model(model, tmp_path / "ran")
        another_config(model, tmp_path / "ran")
        return compare_tensors(*arguments)

    monkeypatch.setattr("nexus_transformers.conversion_scripts.verification.verify.compare_tensors", compare)
    with pytest.raises(CheckpointError, match="nothing was run"):
        verify(llama_folder, model)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_with_code_is_refused_whatever_is_allowed(model, llama_folder, nexus, tmp_path):
    mark(model / "evil.py", tmp_path / "ran")
    edit_json(model / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "evil.Evil"]})
    for command in (
        ["verify", llama_folder, model, "--trust-remote-code"],
        ["convert", model, tmp_path / "out", "--to-source", "--trust-remote-code"],
        ["push", model, "someone/model", "--trust-remote-code"],
        ["inspect", model, "word"],
    ):
        status, output, errors = nexus(*command)
        assert (status, output, errors.count("\n")) == (1, "", 1)
        assert "its tokenizer needs code of its own (evil.Evil), which is never run" in errors
    assert not (tmp_path / "ran").exists()


def test_foreign_code_that_is_allowed_is_run(model, tmp_path):
    """To verify, and by the way back too, whose last step that is."""
    changed_model(model, tmp_path / "ran")
    report = convert_to_source(model, tmp_path / "back", trust_remote_code=True)
    assert report["verification"]["max_abs_logit_difference"] == 0.0
    assert (tmp_path / "ran").exists()


def test_no_code_of_a_source_is_run(tmp_path):
    source = checkpoints.llama(tmp_path / "source")
    for name in ("evil.py", "custom_generate/generate.py"):
        mark(source / name, tmp_path / "ran")
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    edit_json(source / "config.json", auto_map={name: "evil.Evil" for name in classes})
    edit_json(source / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.Evil"]})
    report = convert(source, tmp_path / "out", layer_by_layer=True)
    assert report["verification"]["max_abs_logit_difference"] == 0.0
    assert sorted(file.name for file in (tmp_path / "out").rglob("*.py")) == CODE_FILES
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_code_is_run_with_ours(model, llama_folder):
    for name in CODE_FILES:
        (model / name).unlink()
    edit_json(model / "config.json", auto_map=None)
    before = {file.name for file in model.iterdir()}
    assert verify(llama_folder, model)["max_abs_logit_difference"] == 0.0
    assert {file.name for file in model.iterdir()} == before


def test_the_trust_option_is_refused_where_there_is_nothing_to_trust(llama_folder, nexus, tmp_path):
    status, _, errors = nexus("convert", llama_folder, tmp_path / "out", "--trust-remote-code")
    assert status == 1 and "has a meaning with --to-source only" in errors


def test_released_code_is_listed_by_its_hash():
    assert all(re.fullmatch("[0-9a-f]{64}", digest) and version for digest, version in RELEASED.items())


def test_every_loading_by_an_auto_class_says_whether_code_may_be_run():
    """Where it is left out, Transformers asks on the terminal. Of the folders with what the commands do."""
    loaders = {}
    parts = [ROOT / name for name in ("conversion_scripts", "inspection", "tokenization")]
    for file in [file for part in parts for file in part.rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".from_pretrained", ".from_config")):
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                loaders[f"{file.name}:{node.lineno}"] = ast.unparse(node.func), said.get("trust_remote_code")
    assert [name for name, (loader, said) in loaders.items() if "Auto" in loader and said is None] == []
    assert {said for loader, said in loaders.values() if "Tokenizer" in loader} == {"False"}
    trusting = {name.split(":")[0] for name, (_, said) in loaders.items() if said not in (None, "False")}
    assert trusting == {"isolated_check.py", "pushed_check.py"}, "they run after check_code, in a process of their own"
