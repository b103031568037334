"""What a GGUF file says and Transformers' reader drops: it is understood, or the file is refused."""

import re
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

gguf_file = pytest.importorskip("gguf_file")
from nexus_transformers.conversion_scripts.checkpoint.gguf import ROPE_FACTORS, check_keys, llama_3_factors  # noqa: E402
from nexus_transformers.conversion_scripts.convert import convert  # noqa: E402
from nexus_transformers.conversion_scripts.verification.verify import verify  # noqa: E402
from nexus_transformers.errors import CheckpointError  # noqa: E402

ROPE = {"rope_type": "llama3", "rope_theta": 123456.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 8192}
ids = torch.arange(1, 200)[None]


def test_the_factors_are_those_of_transformers():
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(head_dim=64, rope_parameters=dict(ROPE)), "cpu")
    plain = 1 / ROPE["rope_theta"] ** (torch.arange(32) / 32)
    torch.testing.assert_close(llama_3_factors(ROPE, 32), plain / scaled)


def test_rope_scaling_that_is_kept_in_a_tensor(tmp_path):
    """As llama.cpp writes Llama 3.1. Without it logits would be others, which the last line shows."""
    file = gguf_file.write(tmp_path / "model.gguf", tensors={ROPE_FACTORS: llama_3_factors(ROPE, 8)})
    convert(file, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.config.rope_parameters == ROPE
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert (model(ids).logits - plain(ids).logits).abs().max() > 1e-3
    plain.config.rope_parameters = dict(ROPE)
    expected = AutoModelForCausalLM.from_config(plain.config)
    expected.load_state_dict(plain.state_dict())
    assert torch.equal(model(ids).logits, expected.eval()(ids).logits)


@pytest.mark.parametrize(
    ("keys", "tensors", "named"),
    [
        ({}, {ROPE_FACTORS: torch.linspace(1, 3, 8)}, ROPE_FACTORS),
        ({}, {"blk.0.attn_q.bias": torch.ones(64)}, "'blk.0.attn_q.bias'"),
        ({}, {"blk.0.attn_sinks.weight": torch.ones(4)}, "'blk.0.attn_sinks.weight'"),
        ({".logit_scale": 0.5}, {}, "llama.logit_scale=0.5"),
        ({".rope.scaling.type": "linear"}, {}, "llama.rope.scaling.type='linear'"),
        ({".attention.key_length": 32}, {}, "llama.attention.key_length=32"),
        ({".expert_count": 8}, {}, "llama.expert_count=8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_read_is_named(keys, tensors, named, tmp_path):
    file = gguf_file.write(tmp_path / "model.gguf", tokenizer=None, keys=keys, tensors=tensors)
    with pytest.raises(CheckpointError) as error:
        convert(file, tmp_path / "out", verify=False)
    assert named in str(error.value) and "in safetensors, instead" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_what_says_the_usual_is_accepted(tmp_path):
    keys = {
        ".attention.key_length": 16,
        ".rope.scaling.type": "none",
        ".expert_count": 0,
        ".tensor_data_layout": "Meta AI",
    }
    file = gguf_file.write(tmp_path / "model.gguf", None, keys, {ROPE_FACTORS: torch.ones(8)})
    convert(file, tmp_path / "out", verify=False)


def test_chat_templates_that_are_not_read_are_named(tmp_path):
    file = gguf_file.write(tmp_path / "model.gguf", keys={"tokenizer.chat_template.tool_use": "{{ tools }}"})
    warnings = convert(file, tmp_path / "out", verify=False)["tokenizer"]["warnings"]
    assert [each for each in warnings if each.startswith("The chat templates tool_use in model.gguf were left behind")]


def test_a_head_size_that_the_config_does_not_say_is_that_of_its_heads(tmp_path):
    """Qwen 2 and Phi-3 have none of their own."""
    config = Qwen2Config(hidden_size=64, num_attention_heads=4)
    keys = ("rope.dimension_count", "attention.key_length", "attention.value_length")
    for size in (16, 8):
        fields = {"general.architecture": "qwen2", **{f"qwen2.{key}": size for key in keys}}
        with nullcontext() if size == 16 else pytest.raises(CheckpointError, match=r"qwen2\.rope\.dimension_count=8"):
            check_keys(tmp_path / "model.gguf", fields, config)


@pytest.mark.parametrize(
    ("keys", "without", "said"),
    [
        ({}, "blk.1.ffn_up", "lacks tensor 'blk.1.ffn_up.weight'; the checkpoint is incomplete"),
        ({}, "token_embd", "lacks tensor 'token_embd.weight'"),
        ({"split.count": 3}, "blk.2.", "is one of 3 parts of a model"),
        ({"general.type": "adapter"}, "blk.", "holds an adapter only"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_is_not_there_is_not_made_up(keys, without, said, tmp_path):
    """Transformers would start it at random, in the same way on both sides of a comparison."""
    file = gguf_file.write(tmp_path / "model.gguf", None, keys, without=without)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        convert(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_what_lies_beside_a_gguf_file_is_of_other_models(tmp_path):
    """Transformers would take their tokenizer for that of the file, and attach an adapter."""
    file = gguf_file.write(tmp_path / "source" / "Model.GGUF")
    alone = convert(file, tmp_path / "alone")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (file.parent / name).write_text('{"model_type": "bert"}')
    (file.parent / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    beside = convert(file, tmp_path / "beside")
    assert beside["model"]["files"] == alone["model"]["files"] and "tokenizer.json" in beside["model"]["files"]
    assert list(beside["source"]["files"]) == ["Model.GGUF"]
    assert beside["verification"]["skipped"] == [] and verify(file, tmp_path / "beside")["skipped"] == []
    assert convert(file.parent, tmp_path / "folder", verify=False)["model"]["files"] == alone["model"]["files"]
