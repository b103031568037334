"""`nexus verify` passes what computes the source's function, and says where anything else first differs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoints
from nexus_transformers import NexusForCausalLM
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.conversion_scripts.to_source import convert_to_source
from nexus_transformers.conversion_scripts.verification.verify import judge, verify
from nexus_transformers.errors import CheckpointError, VerificationError


@pytest.fixture
def out(converted, tmp_path):
    return Path(shutil.copytree(converted, tmp_path / "out"))


def edit_weights(out, edit):
    tensors = load_file(out / "model.safetensors")
    edit(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def replace_in(file, old, new):
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_verify_passes_and_adds_its_figures_to_the_report(llama_folder, out, nexus):
    status, output, errors = nexus("verify", llama_folder, out)
    assert (status, errors) == (0, "")
    assert "max |Δlogit| 0.0" in output
    report = json.loads((out / "conversion_report.json").read_text())
    assert report["source"]["model_type"] == "llama"
    assert report["verification"]["added_parameters"] == 6
    assert report["verification"]["added_bytes"] == 24
    assert report["verification"]["identical_parameters"] == report["source"]["parameters"]
    assert report["verification"]["file_bytes"] == (out / "model.safetensors").stat().st_size


@pytest.mark.parametrize(("tied", "arm"), [(True, "shared"), (False, "separate")])
def test_layer_by_layer_gives_the_same_report_with_most_weights_on_the_disk(tied, arm, tmp_path, nexus):
    source = checkpoints.llama(tmp_path / "source", tie_word_embeddings=tied, max_shard_size="60KB")
    figures = convert(source, tmp_path / "out", layer_by_layer=True, inner_attention=arm)["verification"]
    assert figures["layer_by_layer"] is True
    assert figures["positions"] == 2 * 32 + 32 + 16
    assert figures["max_abs_logit_difference"] == 0.0
    assert len(figures["negative_controls"]) == 2
    assert min(figures["negative_controls"].values()) > 0.01

    replace_in(tmp_path / "out" / "attention_nexus.py", "config.head_dim**-0.5", "1.001 * config.head_dim**-0.5")
    status, _, errors = nexus("verify", source, tmp_path / "out", "--layer-by-layer", "--trust-remote-code")
    assert status == 1
    assert "the first layer to differ is number 0" in errors


def test_what_does_not_fit_in_memory_is_verified_layer_by_layer(llama_folder, out, monkeypatch):
    memory = type("Memory", (), {"available": 10_000})
    monkeypatch.setattr(
        "nexus_transformers.conversion_scripts.verification.verify.psutil.virtual_memory", lambda: memory
    )
    assert verify(llama_folder, out)["layer_by_layer"] is True


def test_trained_gates_are_closed_in_memory(llama_folder, out, nexus):
    edit_weights(out, lambda t: [tensor.fill_(0.3) for name, tensor in t.items() if ".inner_norm." in name])
    status, printed, _ = nexus("verify", llama_folder, out)
    assert status == 0 and "Note: 6 gates are open; they were closed for this comparison." in printed
    report = json.loads((out / "conversion_report.json").read_text())
    assert report["verification"]["gates_closed_in_memory"] == 6
    assert verify(llama_folder, out, layer_by_layer=True)["gates_closed_in_memory"] == 6
    gates = [tensor for name, tensor in load_file(out / "model.safetensors").items() if ".inner_norm." in name]
    assert all(gate.item() == pytest.approx(0.3) for gate in gates), "the file is as it was"


def change_one_weight(out):
    edit_weights(out, lambda t: t["model.layers.2.mlp.up_proj.weight"].view(-1)[:1].add_(1e-3))


def drop_one_weight(out):
    edit_weights(out, lambda t: t.pop("model.norm.weight"))


def drop_one_gate(out):
    edit_weights(out, lambda t: t.pop("model.layers.1.self_attn.inner_norm.key_gate_1"))


def add_one_weight(out):
    edit_weights(out, lambda t: t.update({"model.extra.weight": torch.ones(1)}))


def change_the_scaling(out):
    replace_in(out / "attention_nexus.py", "config.head_dim**-0.5", "1.001 * config.head_dim**-0.5")


def break_the_cache(out):
    old = "key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)"
    new = f"{old}; value = value.roll(1, 2) if query.shape[2] == 1 else value"
    replace_in(out / "attention_nexus.py", old, new)


def change_the_tokenizer(out):
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:50]
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))


def change_the_chat_template(out):
    replace_in(out / "chat_template.jinja", "assistant", "asistant")


def import_our_package(out):
    file = out / "modeling_nexus.py"
    file.write_text("import nexus_transformers\n" + file.read_text())


def make_it_a_llama(out):
    replace_in(out / "config.json", '"model_type": "nexus"', '"model_type": "llama"')


@pytest.mark.parametrize(
    ("tamper", "parts"),
    [
        (change_one_weight, ["'model.layers.2.mlp.up_proj.weight'", "first that differs"]),
        (drop_one_weight, ["lacks tensor 'model.norm.weight'"]),
        (drop_one_gate, ["lacks tensor 'model.layers.1.self_attn.inner_norm.key_gate_1'"]),
        (add_one_weight, ["'model.extra.weight'", "does not have"]),
        (change_the_scaling, ["not the same function", "first at token 1 of passage 0"]),
        (
            break_the_cache,
            [
                "greedy continuation",
                "first at new token 1",
                "KV cache it is the same",
                "transformers",
                "this model was tested with",
            ],
        ),
        (change_the_tokenizer, ["tokenizer", "'The capital of France is'"]),
        (change_the_chat_template, ["chat template"]),
        (import_our_package, ["could not be loaded", "nexus_transformers"]),
        (make_it_a_llama, ["is not a Nexus model"]),
    ],
)
def test_what_is_not_the_same_function_is_refused(tamper, parts, llama_folder, out, nexus):
    tamper(out)
    status, output, errors = nexus("verify", llama_folder, out, "--trust-remote-code")
    assert (status, output) == (1, "")
    assert errors.startswith("error: ")
    assert "Traceback" not in errors
    for part in parts:
        assert part in errors


def test_failed_verification_leaves_no_output(llama_folder, tmp_path, nexus, monkeypatch):
    """Converting with a broken model file: the check in the fresh process is what stops it."""
    root = Path(shutil.copytree(Path(convert.__code__.co_filename).parent.parent, tmp_path / "root", ignore=ignored))
    replace_in(root / "attention_nexus.py", "config.head_dim**-0.5", "1.001 * config.head_dim**-0.5")
    for module in ("convert", "checkpoint.code"):
        monkeypatch.setattr(f"nexus_transformers.conversion_scripts.{module}.ROOT", root)
    status, _, errors = nexus("convert", llama_folder, tmp_path / "out")
    assert status == 1
    assert "not the same function" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def ignored(folder, names):
    return [name for name in names if not (name.endswith(".py") or name == "conversion_scripts")]


def test_a_check_that_sees_nothing_is_not_a_check():
    figures = {"max_abs_logit_difference": 0.0, "tolerance": 0.0, "greedy_equal": True}
    figures["negative_controls"] = {"heads swapped": 0.0}
    with pytest.raises(VerificationError, match="the check is blind"):
        judge(figures, Path("out"))
    judge(figures | {"negative_controls": {"heads swapped": 1e-6}}, Path("out"))


def test_a_card_in_another_encoding_stays_as_it_is(llama_folder, out):
    (out / "README.md").write_bytes(b"---\nlicense: mit\n---\n# Caf\xe9\n")
    command = [Path(sys.executable).with_name("nexus"), "verify", llama_folder, out]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert (out / "README.md").read_bytes().endswith(b"Caf\xe9\n")


def test_a_broken_report_is_said_before_the_comparison(llama_folder, out, monkeypatch):
    (out / "conversion_report.json").write_text("{")
    monkeypatch.setattr("nexus_transformers.conversion_scripts.verification.verify.run_isolated", None)
    with pytest.raises(CheckpointError, match=r"conversion_report\.json: is not valid JSON"):
        verify(llama_folder, out)


def test_a_folder_without_a_report_gets_none(llama_folder, out):
    (out / "conversion_report.json").unlink()
    assert verify(llama_folder, out)["max_abs_logit_difference"] == 0.0
    assert not (out / "conversion_report.json").exists()


def test_an_adapter_in_the_place_of_a_model_is_told(llama_folder, tmp_path):
    """As training with LoRA leaves it."""
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds an adapter only\. Merge it into its base model"):
        verify(llama_folder, tmp_path)


def test_a_model_without_its_head_is_told_apart_from_an_incomplete_one(llama_folder, out, tmp_path):
    NexusForCausalLM.from_pretrained(out).model.save_pretrained(tmp_path / "decoder")
    with pytest.raises(CheckpointError, match="was saved as NexusModel, and this needs NexusForCausalLM"):
        verify(llama_folder, tmp_path / "decoder")


@pytest.mark.parametrize("side", ["source", "result"])
def test_a_tokenizer_of_one_side_only_is_not_compared(side, llama_folder, out, tmp_path):
    source = Path(shutil.copytree(llama_folder, tmp_path / "source"))
    without = source if side == "source" else out
    for file in without.glob("*token*.json"):
        file.unlink()
    assert verify(source, out)["skipped"] == [f"tokenizers, as {without} has none"]


def test_a_model_of_images_whose_first_file_holds_images_only(tmp_path):
    """And whose config.json says no dtype: that of the first weight of the language model counts."""
    source = checkpoints.save("gemma3", tmp_path / "source", torch.bfloat16)
    tensors = load_file(source / "model.safetensors")
    of_images = {name: tensor.float() for name, tensor in tensors.items() if "language_model" not in name}
    others = {name: tensor for name, tensor in tensors.items() if name not in of_images}
    assert of_images and others
    files = {"model-00001-of-00002.safetensors": of_images, "model-00002-of-00002.safetensors": others}
    for file, part in files.items():
        save_file(part, source / file, metadata={"format": "pt"})
    (source / "model.safetensors").unlink()
    weight_map = {name: file for file, part in files.items() for name in part}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = json.loads((source / "config.json").read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.pop("dtype", None)
    (source / "config.json").write_text(json.dumps(config))
    assert convert(source, tmp_path / "out", verify=False)["source"]["dtype"] == "bfloat16"


def test_settings_that_mean_the_same_are_the_same(tmp_path):
    source = checkpoints.save("qwen2", tmp_path / "source")
    convert(source, tmp_path / "out", verify=False)
    file = tmp_path / "out" / "config.json"
    config = json.loads(file.read_text())
    assert config["sliding_layers"]
    config["sliding_layers"] = config["sliding_layers"][::-1] * 2
    config["rope_parameters"]["partial_rotary_factor"] = 1.0
    file.write_text(json.dumps(config))
    assert verify(source, tmp_path / "out")["max_abs_logit_difference"] == 0.0
    convert_to_source(tmp_path / "out", tmp_path / "back", verify=False)
    config["sliding_layers"] = config["sliding_layers"][:1]
    file.write_text(json.dumps(config))
    with pytest.raises(VerificationError, match="says sliding_layers="):
        verify(source, tmp_path / "out")


def test_that_nothing_could_be_controlled_is_said(tmp_path, nexus):
    source = checkpoints.llama(tmp_path / "source", num_attention_heads=1, num_key_value_heads=1)
    status, output, _ = nexus("convert", source, tmp_path / "out", "--order", "1")
    assert (
        status == 0 and "Negative controls, which must differ: none, as there is no gate, and one head only." in output
    )
