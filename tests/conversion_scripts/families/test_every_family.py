"""
Every family through the real command: a tiny model of Transformers' own class -> Nexus, equal in logits -> back, equal
in every tensor of its files and in what its config says.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import checkpoints
from nexus_transformers import NexusForCausalLM, modeling_nexus
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.conversion_scripts.families import FAMILIES, METADATA_FIELDS
from nexus_transformers.conversion_scripts.families.rules import LEFT_BEHIND
from nexus_transformers.conversion_scripts.verification.verify import ROUNDING
from nexus_transformers.errors import ConversionError

YARN = {"rope_type": "yarn", "rope_theta": 54321.0, "factor": 4.0, "original_max_position_embeddings": 128}
VARIANTS = {
    "float32": {},
    "bfloat16, in shards": {"dtype": torch.bfloat16, "max_shard_size": "40KB", "tie_word_embeddings": False},
    "tied, yarn, padded vocabulary": {"tie_word_embeddings": True, "rope_parameters": YARN, "vocab_size": 530},
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    return {checkpoints.new_name(name): tensor for name, tensor in found.items()}


def function_fields(folder: Path) -> dict:
    config = AutoConfig.from_pretrained(folder).to_dict()
    # The first says nothing without LongRoPE, the second repeats what is in rope_parameters, for Transformers 4.
    ignored = METADATA_FIELDS | {"original_max_position_embeddings", "partial_rotary_factor"}
    return {name: value for name, value in config.items() if name not in ignored}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_there_and_back(model_type, variant, tmp_path, nexus):
    source, there, back = tmp_path / "source", tmp_path / "nexus", tmp_path / "back"
    changes = dict(VARIANTS[variant])
    if model_type in ("esm", "phi3"):
        changes.pop("rope_parameters", None)  # the one has none, the other knows LongRoPE only
    if model_type in ("gemma3_text", "olmo3") and "rope_parameters" in changes:
        changes["rope_parameters"] = {"full_attention": YARN}
    checkpoints.save(model_type, source, **changes)
    rounds = FAMILIES[model_type].rounds
    options = ["--order", "1,3,2", "--max-shard-size", "60KB"]
    if "in shards" not in variant:
        options.append("--no-verify")
    status, output, errors = nexus("convert", source, there, "--json", *options)
    assert (status, errors) == (0, "")
    if figures := json.loads(output).get("verification"):
        assert figures["max_abs_logit_difference"] <= (ROUNDING * figures["max_abs_logit"] if rounds else 0.0)
        assert figures["dtype"] == ("float32" if rounds else "bfloat16")
        assert min(figures["negative_controls"].values()) > 0.01

    ids = torch.randint(checkpoints.VOCAB_SIZE, (2, 40))
    ids[0, ::7] = 5  # the mask of encoders
    family = FAMILIES[model_type]
    expected = checkpoints.auto_class(model_type).from_pretrained(source, dtype=torch.float32)(ids).logits
    actual = getattr(modeling_nexus, family.architecture).from_pretrained(there, dtype=torch.float32)(ids).logits
    assert (actual - expected).abs().max() <= (ROUNDING * expected.abs().max() if rounds else 0.0)

    status, output, errors = nexus("convert", there, back, "--to-source", "--json", "--no-verify")
    assert (status, errors) == (0, "")
    original, returned = weights(source), weights(back)
    original = {name: value for name, value in original.items() if FAMILIES[model_type].rule_of(name) != LEFT_BEHIND}
    assert set(returned) == set(original)
    for name, tensor in original.items():
        assert returned[name].dtype == tensor.dtype
        assert torch.equal(returned[name], tensor)
    assert function_fields(back) == function_fields(source)
    carried = ["tokenizer.json", "chat_template.jinja", *(["generation_config.json"] if not family.is_encoder else [])]
    for name in carried:
        assert (back / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(
    ("model_type", "family", "options"),
    [
        ("mistral3", "mistral", {"tie_word_embeddings": False}),
        ("qwen2_5_vl", "qwen2", {"tie_word_embeddings": True}),
        ("qwen3_vl", "qwen3", {"dtype": torch.bfloat16, "max_shard_size": "40KB"}),
    ],
)
def test_of_a_model_of_images_the_language_model_alone(model_type, family, options, tmp_path, nexus):
    source, there, back = tmp_path / "source", tmp_path / "nexus", tmp_path / "back"
    checkpoints.save(model_type, source, **options)
    if model_type == "mistral3":  # as published: its own head, and nothing said of it, which Transformers calls tied
        config = json.loads((source / "config.json").read_text())
        del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]
        (source / "config.json").write_text(json.dumps(config))
    layer_by_layer = ["--layer-by-layer"] if model_type == "qwen3_vl" else []
    status, output, errors = nexus("convert", source, there, *layer_by_layer)
    assert (status, errors) == (0, "")
    assert f"of this {model_type} the language model alone was taken" in output
    assert "max |Δlogit| 0.0, KL" in output
    assert f"the language model of this {model_type} alone" in (there / "README.md").read_text()
    assert nexus("convert", there, back, "--to-source", "--no-verify")[0] == 0
    with_eyes = AutoModelForImageTextToText.from_pretrained(source)
    model, returned = NexusForCausalLM.from_pretrained(there), AutoModelForCausalLM.from_pretrained(back)
    assert (returned.config.model_type, returned.dtype) == (family, with_eyes.dtype)
    assert returned.config.tie_word_embeddings is options.get("tie_word_embeddings", False)
    ids = torch.randint(checkpoints.VOCAB_SIZE, (2, 40))
    expected = with_eyes(ids).logits
    assert torch.equal(model(ids).logits, expected)
    assert torch.equal(returned(ids).logits, expected)


@pytest.mark.parametrize(
    ("model_type", "text", "reason"),
    [
        (
            "mistral3",
            {"model_type": "ministral3"},
            "'ministral3' cannot be converted: it scales queries by their position",
        ),
        ("qwen3_vl", {"clip_qkv": 8}, "clip_qkv=8"),
        ("qwen3_vl", {"quantization_config": {"quant_method": "fp8"}}, "is quantized (fp8)"),
    ],
)
def test_what_the_language_model_of_one_may_not_be(model_type, text, reason, tmp_path, nexus):
    file = checkpoints.save(model_type, tmp_path / "source") / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"text_config": config["text_config"] | text}))
    status, output, errors = nexus("convert", tmp_path / "source", tmp_path / "out")
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert reason in errors


HALF = checkpoints.SHAPES["glm4"]["rope_parameters"]


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("glm", {"partial_rotary_factor": 0.45, "rope_parameters": {**HALF, "partial_rotary_factor": 0.45}}),
        ("glm4", {"rope_parameters": {**HALF, "rope_type": "proportional"}}),
    ],
    ids=["odd rotary size", "proportional"],
)
def test_rotary_settings_that_pair_other_rows(model_type, changes, tmp_path):
    report = convert(checkpoints.save(model_type, tmp_path / "source", **changes), tmp_path / "out")
    assert report["verification"]["max_abs_logit_difference"] <= report["verification"]["tolerance"]


def test_a_scaling_of_rotary_embeddings_that_esm_does_not_read_is_named(tmp_path):
    scaling = {"rope_type": "linear", "factor": 4.0}
    source = checkpoints.save("esm", tmp_path / "source", rope_scaling=scaling)
    with pytest.raises(ConversionError, match=r"rope_parameters=.*linear.*is unknown for model_type='esm'"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "esm"])
def test_the_way_back_is_verified_and_says_so(model_type, tmp_path, nexus):
    checkpoints.save(model_type, tmp_path / "source")
    assert nexus("convert", tmp_path / "source", tmp_path / "nexus", "--no-verify")[0] == 0
    status, output, errors = nexus("convert", tmp_path / "nexus", tmp_path / "back", "--to-source")
    assert (status, errors) == (0, "")
    assert f"a {model_type} model" in output
    assert "Verified in a fresh process" in output
    status, output, _ = nexus("convert", tmp_path / "nexus", tmp_path / "back", "--to-source")
    assert (status, "already complete" in output) == (0, True)
    loaded = checkpoints.auto_class(model_type).from_pretrained(tmp_path / "back")
    assert type(loaded).__module__.startswith("transformers.models.")


@pytest.mark.parametrize("model_type", ["gpt_neox", "phi3"])
def test_another_activation_is_not_within_the_tolerance_for_fused_products(model_type, tmp_path, nexus):
    checkpoints.save(model_type, tmp_path / "source", hidden_act="gelu")
    assert nexus("convert", tmp_path / "source", tmp_path / "nexus", "--no-verify")[0] == 0
    config = json.loads((tmp_path / "nexus" / "config.json").read_text())
    (tmp_path / "nexus" / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu_new"}))
    status, _, errors = nexus("verify", tmp_path / "source", tmp_path / "nexus")
    assert status == 1
    assert "not the same function" in errors


def test_what_no_standard_model_computes_is_not_converted_back(llama_folder, tmp_path, nexus):
    def refused(model, *parts, arguments=()):
        status, output, errors = nexus("convert", model, tmp_path / "back", "--to-source", *arguments)
        assert (status, output, errors.count("\n")) == (1, "", 1)
        assert all(part in errors for part in parts), errors
        assert not (tmp_path / "back").exists()

    assert nexus("convert", llama_folder, tmp_path / "open", "--no-verify", "--gate-init", "0.25")[0] == 0
    refused(tmp_path / "open", "6 of its 6 gates are open", "0.25")
    assert nexus("convert", llama_folder, tmp_path / "nested", "--no-verify", "--no-gate")[0] == 0
    refused(tmp_path / "nested", "nested without gates")
    assert nexus("convert", llama_folder, tmp_path / "closed", "--no-verify")[0] == 0
    refused(tmp_path / "closed", "qk_norm", arguments=("--family", "qwen3"))
    refused(tmp_path / "closed", "Known: ", arguments=("--family", "elephant"))
    refused(llama_folder, "is not a Nexus model")

    NexusForCausalLM.from_pretrained(tmp_path / "closed").save_pretrained(tmp_path / "saved")  # as Trainer does
    refused(tmp_path / "saved", "--family")
    arguments = ("convert", tmp_path / "saved", tmp_path / "back", "--to-source", "--family", "llama")
    assert nexus(*arguments)[0] == 0
    assert set(weights(tmp_path / "back")) == set(weights(llama_folder))
