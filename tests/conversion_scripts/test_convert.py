"""Conversion: what comes out is the source's function, weights, tokenizer and settings, with everything it needs."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import reduce
from importlib.metadata import version
from operator import getitem
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import checkpoints
import gguf_file
import nexus_transformers
from nexus_transformers import NexusForCausalLM
from nexus_transformers.conversion_scripts.checkpoint.files import CODE_FILES
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.errors import CheckpointError

ROOT = Path(nexus_transformers.__file__).parent
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def hashes(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


EXACT = {  # source, order, inner attention
    "float32-tied": ({}, "2", "shared"),
    "bfloat16-untied-sharded": (
        {"dtype": torch.bfloat16, "tie_word_embeddings": False, "max_shard_size": "50KB"},
        "1,2,2",
        "separate",
    ),
    "biases-gelu-llama3-rope-orders": (
        {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "rope_parameters": LLAMA3_ROPE},
        "1,3,2",
        "self",
    ),
    "float16-mqa, heads as wide as the model": (
        {"dtype": torch.float16, "num_key_value_heads": 1, "num_hidden_layers": 2, "hidden_size": 64},
        "3,3",
        "shared",
    ),
}


@pytest.mark.parametrize(("source_options", "order", "arm"), EXACT.values(), ids=EXACT.keys())
def test_converted_model_equals_its_source(source_options, order, arm, tmp_path, nexus):
    source = checkpoints.llama(tmp_path / "source", **source_options)
    before = hashes(source)
    status, output, errors = nexus(
        "convert", source, tmp_path / "out", "--order", order, "--inner-attention", arm, "--max-shard-size", "80KB"
    )
    assert (status, errors) == (0, "")
    assert "max |Δlogit| 0.0" in output
    assert hashes(source) == before, "a source is only read"

    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    figures = report["verification"]
    assert figures["max_abs_logit_difference"] == 0.0
    assert figures["mean_kl"] == 0.0
    assert figures["greedy_equal"]
    assert len(figures["negative_controls"]) == 2
    assert all(difference > 0 for difference in figures["negative_controls"].values())

    expected, actual = weights(source), weights(tmp_path / "out")
    added = {name: tensor.numel() for name, tensor in actual.items() if ".self_attn.inner_" in name}
    assert set(actual) - set(added) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor)
    orders = [int(part) for part in order.split(",")] * (1 if "," in order else 3)
    assert report["model"]["gates"] == sum(2 * (order - 1) for order in orders)
    assert report["model"]["gates"] + report["model"]["inner_parameters"] == sum(added.values())
    assert (report["model"]["inner_parameters"] > 0) == (arm == "separate")
    assert figures["added_parameters"] == sum(added.values())
    assert report["model"]["parameters"] == report["source"]["parameters"] + sum(added.values())

    ids = torch.randint(checkpoints.VOCAB_SIZE, (2, 40))
    for implementation in ("eager", "sdpa"):
        llama = LlamaForCausalLM.from_pretrained(source, attn_implementation=implementation)
        model = NexusForCausalLM.from_pretrained(tmp_path / "out", attn_implementation=implementation)
        assert model.dtype == llama.dtype
        assert torch.equal(model(ids).logits, llama(ids).logits)


def test_tokenizer_and_settings_are_carried_over_byte_for_byte(llama_folder, tmp_path):
    report = convert(llama_folder, tmp_path / "out", verify=False)
    assert set(report["tokenizer_files"]) == {
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in report["tokenizer_files"]:
        assert (tmp_path / "out" / name).read_bytes() == (llama_folder / name).read_bytes()


def test_code_and_auto_map_travel_along(llama_folder, tmp_path):
    convert(llama_folder, tmp_path / "out", verify=False)
    for name in CODE_FILES:
        assert (tmp_path / "out" / name).read_bytes() == (ROOT / name).read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_nexus.NexusForCausalLM"
    assert config["architectures"] == ["NexusForCausalLM"]
    assert config["rope_parameters"]["rope_theta"] == 123456.0


def test_without_gates_the_model_is_fully_nested_and_compared_at_order_1(llama_folder, tmp_path):
    """The paper's own retrofit: random inner layers."""
    report = convert(llama_folder, tmp_path / "out", gate_init=None, inner_attention="separate")
    assert report["model"]["gates"] == 0 < report["model"]["inner_parameters"]
    assert report["verification"]["compared_at_order"] == 1
    assert list(report["verification"]["negative_controls"]) == ["query heads 0 and 3 of layer 1 swapped"]
    ids = torch.randint(checkpoints.VOCAB_SIZE, (1, 20))
    source, nested = LlamaForCausalLM.from_pretrained(llama_folder), NexusForCausalLM.from_pretrained(tmp_path / "out")
    assert (source(ids).logits - nested(ids).logits).abs().max() > 0.1


def test_gates_can_start_open_and_are_closed_in_memory_to_verify(llama_folder, tmp_path):
    report = convert(llama_folder, tmp_path / "out", gate_init=0.25)
    assert report["verification"]["gates_closed_in_memory"] == 6
    assert report["verification"]["max_abs_logit_difference"] == 0.0
    gates = NexusForCausalLM.from_pretrained(tmp_path / "out").gates()
    assert [gate.item() for gate in gates.values()] == [0.25] * 6


def test_dtype_can_be_changed(llama_folder, tmp_path):
    report = convert(llama_folder, tmp_path / "out", dtype=torch.bfloat16)
    assert report["verification"]["dtype"] == "bfloat16"
    assert report["verification"]["max_abs_logit_difference"] == 0.0
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.bfloat16}


def test_each_tensor_keeps_its_own_dtype(llama_folder, tmp_path):
    mixed = checkpoints.llama(tmp_path / "source", dtype=torch.bfloat16)
    tensors = load_file(mixed / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-5
    save_file(tensors, mixed / "model.safetensors", metadata={"format": "pt"})
    report = convert(mixed, tmp_path / "out")
    assert report["verification"]["max_abs_logit_difference"] == 0.0
    assert torch.equal(weights(tmp_path / "out")["model.norm.weight"], tensors["model.norm.weight"])


def test_order_1_is_a_standard_model_without_gates(llama_folder, tmp_path):
    report = convert(llama_folder, tmp_path / "out", order=1)
    assert report["model"]["gates"] == 0
    assert report["model"]["parameters"] == report["source"]["parameters"]
    assert report["verification"]["max_abs_logit_difference"] == 0.0


def test_old_buffers_are_left_behind_and_a_stored_tied_head_is_kept(tmp_path):
    source = checkpoints.llama(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    report = convert(source, tmp_path / "out")
    assert report["verification"]["max_abs_logit_difference"] == 0.0
    assert set(tensors) - set(weights(tmp_path / "out")) == {"model.layers.0.self_attn.rotary_emb.inv_freq"}


def test_weights_without_a_tokenizer_are_compared_on_random_tokens(tmp_path):
    source = checkpoints.llama(tmp_path / "source")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (source / file).unlink()
    report = convert(source, tmp_path / "out")
    assert report["tokenizer_files"] == ["generation_config.json"]
    assert report["verification"]["max_abs_logit_difference"] == 0.0


@pytest.mark.parametrize("as_folder", [True, False], ids=["folder", "file"])
def test_gguf_file_becomes_a_model_with_tokenizer_and_chat_template(as_folder, tmp_path):
    file = gguf_file.write(tmp_path / "source" / "tiny.gguf")
    report = convert(file.parent if as_folder else file, tmp_path / "out")
    assert report["verification"]["max_abs_logit_difference"] == 0.0
    assert "tokens_differ" not in report["verification"]
    source = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    model = NexusForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.randint(checkpoints.VOCAB_SIZE, (1, 20))
    assert torch.equal(model(ids).logits, source(ids).logits)
    assert model.generation_config.eos_token_id == 2
    chat = [{"role": "user", "content": "Hello"}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|im_start|>user\nHello<|im_end|>\n"


def test_gguf_file_without_a_tokenizer_becomes_a_model_without_one(tmp_path, nexus):
    file = gguf_file.write(tmp_path / "source" / "tiny.gguf", tokenizer=None)
    status, output, errors = nexus("convert", file, tmp_path / "out")
    assert (status, errors) == (0, "")
    assert "Note: There is no tokenizer beside the model." in output
    assert "max |Δlogit| 0.0" in output


def test_report_pins_source_versions_and_command(llama_folder, tmp_path, nexus):
    assert nexus("convert", llama_folder, tmp_path / "out", "--no-verify")[0] == 0
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert report["source"]["files"]["model.safetensors"]["sha256"] == hashes(llama_folder)["model.safetensors"]
    assert report["source"]["parameters"] == LlamaForCausalLM.from_pretrained(llama_folder).num_parameters()
    assert report["command"][:2] == ["nexus", "convert"]
    assert report["environment"]["torch"] == version("torch")
    assert "verification" not in report
    assert report["model"]["bytes"] == sum(tensor.nbytes for tensor in weights(tmp_path / "out").values())


@pytest.mark.parametrize("licence", [None, "apache-2.0"])
def test_card_is_valid_and_states_the_licence_of_the_source_or_that_it_is_unknown(licence, tmp_path):
    source = checkpoints.llama(tmp_path / "source")
    if licence:
        (source / "README.md").write_text(f"---\nlicense: {licence}\n---\n# Source\n")
    verified = licence is None
    convert(source, tmp_path / "out", verify=verified)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == (licence or "unknown")
    assert card.data.library_name == "transformers"
    assert ("licence of the source is unknown" in card.text) == (licence is None)
    assert ("largest difference of any logit" in card.text) == verified
    assert "{{" not in card.text


def test_a_broken_card_of_the_source_says_nothing_about_the_licence_and_stops_nothing(tmp_path):
    source = checkpoints.llama(tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: [apache-2.0\n---\n# Source\n")
    convert(source, tmp_path / "out", verify=False)
    assert "licence of the source is unknown" in (tmp_path / "out" / "README.md").read_text()


def test_overwrite_replaces_a_nexus_model_and_only_that(llama_folder, tmp_path, nexus):
    out = tmp_path / "out"
    assert nexus("convert", llama_folder, out, "--no-verify")[0] == 0
    status, _, errors = nexus("convert", llama_folder, out, "--no-verify", "--order", "3")
    assert status == 1
    assert "--overwrite" in errors
    assert nexus("convert", llama_folder, out, "--no-verify", "--order", "3", "--overwrite")[0] == 0
    assert json.loads((out / "config.json").read_text())["attention_order"] == 3

    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "thesis.tex").write_text("four years of work")
    status, _, errors = nexus("convert", llama_folder, precious, "--no-verify", "--overwrite")
    assert status == 1
    assert "is not a Nexus model" in errors
    assert (precious / "thesis.tex").read_text() == "four years of work"
    (precious / "config.json").write_text('{"title": "nexus"}')
    status, _, errors = nexus("convert", llama_folder, precious, "--no-verify", "--overwrite")
    assert status == 1
    assert "is not a Nexus model" in errors


def test_dry_run_says_what_would_be_done_and_does_nothing(tmp_path, nexus):
    source = checkpoints.llama(tmp_path / "source", max_shard_size="50KB")
    (source / "training_args.bin").write_bytes(b"pickle")
    arguments = ("convert", source, tmp_path / "out", "--order", "1,2,2", "--max-shard-size", "40KB")
    status, output, errors = nexus(*arguments, "--dry-run")
    assert (status, errors) == (0, "")
    for part in ("llama", "4 gates", "tokenizer.json", "training_args.bin", "the licence of the source"):
        assert part in output
    assert [path.name for path in tmp_path.iterdir()] == ["source"]

    plan = json.loads(nexus(*arguments, "--dry-run", "--json")[1])
    report = json.loads(nexus(*arguments, "--no-verify", "--json")[1])
    assert plan["model"]["parameters"] == report["model"]["parameters"]
    assert plan["model"]["gates"] == report["model"]["gates"] == 4
    assert plan["model"]["bytes"] == report["model"]["bytes"]
    assert plan["model"]["shards"] == len(report["model"]["shards"]) > 1
    assert set(plan["carried_over"]) == set(report["tokenizer_files"])
    assert plan["disk"]["free_bytes"] > plan["disk"]["needed_bytes"] == report["model"]["bytes"]


def test_json_for_machines_is_the_report_or_the_error(llama_folder, tmp_path, nexus):
    status, output, errors = nexus("convert", llama_folder, tmp_path / "out", "--json")
    assert (status, errors) == (0, "")
    assert json.loads(output)["verification"]["max_abs_logit_difference"] == 0.0
    status, output, errors = nexus("verify", llama_folder, tmp_path / "out", "--json")
    assert (status, errors) == (0, "")
    assert json.loads(output)["greedy_equal"] is True
    status, output, errors = nexus("convert", tmp_path / "nowhere", tmp_path / "other", "--json")
    assert (status, errors) == (1, "")
    assert "no such folder" in json.loads(output)["error"]


def test_report_lists_every_file_with_its_hash(llama_folder, tmp_path):
    report = convert(llama_folder, tmp_path / "out", verify=False)
    expected = {name: hash for name, hash in hashes(tmp_path / "out").items()}
    for not_listed in ("README.md", "conversion_report.json"):
        expected.pop(not_listed)
    assert {name: file["sha256"] for name, file in report["model"]["files"].items()} == expected
    assert report["source"]["config"] == json.loads((llama_folder / "config.json").read_text())
    assert set(report["source"]["files"]) == {file.name for file in llama_folder.iterdir()}


def test_failed_conversion_leaves_the_model_that_was_there(llama_folder, tmp_path, nexus):
    out = tmp_path / "out"
    assert nexus("convert", llama_folder, out, "--no-verify")[0] == 0
    before = hashes(out)
    broken = checkpoints.llama(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert nexus("convert", broken, out, "--overwrite")[0] == 1
    assert hashes(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "out"]


def test_progress_is_shown_on_a_terminal(llama_folder, tmp_path):
    """A real pseudo-terminal as standard error, where the bars are drawn; what a pipe gets is in the other tests."""
    ours, theirs = os.openpty()
    command = [Path(sys.executable).with_name("nexus"), "convert", llama_folder, tmp_path / "out"]
    process = subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 1 << 16):
            shown += block
    except OSError:  # the other end was closed
        pass
    assert process.wait() == 0
    for step in (b"writing", b"hashing", b"comparing", b"in a fresh process"):
        assert step in shown
    assert b"Traceback" not in shown


def test_a_single_file_with_an_index_that_names_it_is_one_set_of_weights(llama_folder, tmp_path):
    """As mlx-lm writes it."""
    source = Path(shutil.copytree(llama_folder, tmp_path / "source"))
    names = dict.fromkeys(load_file(source / "model.safetensors"), "model.safetensors")
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    convert(source, tmp_path / "out", verify=False)
    assert weights(tmp_path / "out").keys() >= names.keys()
    index.write_text(json.dumps({"weight_map": names | {"model.norm.weight": "other.safetensors"}}))
    with pytest.raises(CheckpointError, match="two sets of weights"):
        convert(source, tmp_path / "out2")


def test_a_path_spelled_otherwise_is_the_same_source(llama_folder, tmp_path, monkeypatch):
    convert(llama_folder, tmp_path / "out", verify=False)
    monkeypatch.chdir(llama_folder)
    for source in (f"{llama_folder}/", ".", f"../{llama_folder.name}"):
        assert convert(source, tmp_path / "out", verify=False)["unchanged"]


def test_a_changed_chat_template_is_another_source(llama_folder, tmp_path):
    source = Path(shutil.copytree(llama_folder, tmp_path / "source"))
    (source / "additional_chat_templates").mkdir()
    template = source / "additional_chat_templates" / "tools.jinja"
    template.write_text("{{ messages[0].content }}")
    plan = convert(source, tmp_path / "out", dry_run=True)
    assert "additional_chat_templates/tools.jinja" in plan["carried_over"]
    assert "additional_chat_templates" not in plan["left_behind"]
    convert(source, tmp_path / "out", verify=False)
    assert convert(source, tmp_path / "out", verify=False)["unchanged"]
    template.write_text("{{ messages[0].role }}")
    with pytest.raises(CheckpointError, match="not the one that this command would write"):
        convert(source, tmp_path / "out", verify=False)


def test_the_card_of_what_lies_here_names_its_folder(llama_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(llama_folder)
    convert(".", tmp_path / "out", verify=False)
    assert f"# {llama_folder.name} with nested attention" in (tmp_path / "out" / "README.md").read_text()


def test_only_chat_templates_are_carried_over_of_their_folder(llama_folder, tmp_path):
    source = Path(shutil.copytree(llama_folder, tmp_path / "source"))
    (source / "additional_chat_templates").mkdir()
    for name in ("tools.jinja", ".DS_Store", "x.py"):
        (source / "additional_chat_templates" / name).write_text("{{ messages[0].content }}")
    convert(source, tmp_path / "out", verify=False)
    assert [file.name for file in (tmp_path / "out" / "additional_chat_templates").iterdir()] == ["tools.jinja"]
    convert(source, tmp_path / "out", order=1, overwrite=True, verify=False)


def test_half_a_surrogate_in_a_tokenizer_s_config_stays_one(tmp_path):
    source = checkpoints.save("qwen2", tmp_path / "source")
    file = source / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"note": "\ud800"}))
    convert(source, tmp_path / "out", verify=False)
    assert json.loads((tmp_path / "out" / file.name).read_text())["note"] == "\ud800"


@pytest.mark.parametrize(
    ("where", "part"),
    [
        (("model", "files", "config.json"), {"bytes": "x", "sha256": ""}),
        (("model", "files", "config.json"), None),
        (("model", "files", "config.json"), {"sha256": ""}),
        (("source", "name"), None),
        *((("model", name), []) for name in ("gates", "inner_parameters", "parameters", "bytes", "dtype")),
    ],
    ids=str,
)
def test_a_report_that_somebody_has_edited_is_not_taken_for_ours(where, part, model, llama_folder):
    report = json.loads((model / "conversion_report.json").read_text())
    *parents, last = where
    reduce(getitem, parents, report)[last] = part
    (model / "conversion_report.json").write_text(json.dumps(report))
    with pytest.raises(CheckpointError, match="not the one that this command would write"):
        convert(llama_folder, model, verify=False)
    assert "unchanged" not in convert(llama_folder, model, verify=False, overwrite=True)
