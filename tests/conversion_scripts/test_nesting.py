"""Every inner attention that `nexus convert` offers: exact with closed gates, back again, drawn from its seed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import checkpoints
from nexus_transformers import NexusConfig, NexusForCausalLM
from nexus_transformers.conversion_scripts.checkpoint.added import initial
from nexus_transformers.conversion_scripts.checkpoint.shards import PIECE
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.conversion_scripts.nesting import can_be_served
from nexus_transformers.conversion_scripts.to_source import convert_to_source
from nexus_transformers.errors import CheckpointError, ConversionError

ARMS = {
    "Eq. 12": {"order": 3},
    "Eq. 12 with W_O, values too": {"inner_output_projection": True, "refine": ["query", "key", "value"]},
    "separate, queries only": {"inner_attention": "separate", "refine": ["query"]},
    "separate with W_O, values too": {
        "inner_attention": "separate",
        "inner_output_projection": True,
        "refine": ["value", "key", "query"],
    },
    "self": {"inner_attention": "self", "order": [2, 1, 3]},
    "without the inner scale": {"inner_scale": False},
    "inner window": {"inner_window": 6, "order": 3},
    "inner window, separate": {"inner_window": 6, "inner_attention": "separate"},
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Llama with grouped heads and biases, whose heads are as wide as the model."""
    folder = tmp_path_factory.mktemp("square") / "source"
    return checkpoints.llama(folder, hidden_size=64, attention_bias=True)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A Qwen3, whose heads are wider than the model, with biases and norms of queries and keys."""
    return checkpoints.save("qwen3", tmp_path_factory.mktemp("wide") / "source")


@pytest.mark.parametrize(
    ("fields", "served"),
    [
        ({"attention_order": 1}, True),
        ({"attention_order": 3}, True),
        ({"inner_attention": "separate", "refine_value": True}, True),
        ({"inner_window": 8}, True),
        ({"sliding_window": 8}, True),
        ({"refine_key": False}, False),  # two attentions would share a slot
        ({"refine_key": False, "inner_window": 8}, True),
        ({"sliding_window": 16, "inner_window": 8}, False),
        ({"inner_attention": "self"}, True),
        ({"inner_attention": "self", "num_key_value_heads": 3}, False),
        ({"is_causal": False}, False),
    ],
)
def test_what_vllm_can_serve_is_told(fields, served):
    """As `make test-serving` finds with vLLM itself."""
    assert can_be_served(NexusConfig(**{"num_layers": 2, "attention_order": 2} | fields)) is served


@pytest.mark.parametrize("arm", ARMS)
@torch.no_grad()
def test_exact_until_a_gate_opens_and_back_bit_for_bit(arm, source, tmp_path):
    convert(source, tmp_path / "there", verify=False, **ARMS[arm])
    convert_to_source(tmp_path / "there", tmp_path / "back", verify=False)
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()

    ids = torch.randint(checkpoints.VOCAB_SIZE, (2, 24))
    model = NexusForCausalLM.from_pretrained(tmp_path / "there")
    expected = LlamaForCausalLM.from_pretrained(source)(ids).logits
    assert torch.equal(model(ids).logits, expected)
    assert len(model.gates()) >= 3
    for name, gate in reversed(model.gates().items()):  # a level may act through those above it only
        closed = model(ids).logits
        gate.fill_(0.5)
        assert (model(ids).logits - closed).abs().max() > 0.01, name

    for gate_init, why in ((0.25, "gates are open"), (None, "nested without gates")):
        convert(source, tmp_path / "open", verify=False, overwrite=True, gate_init=gate_init, **ARMS[arm])
        with pytest.raises(ConversionError, match=why):
            convert_to_source(tmp_path / "open", tmp_path / "nowhere", verify=False)


def test_inner_layers_depend_on_the_seed_alone(wide, tmp_path):
    def converted(name, **options):
        report = convert(wide, tmp_path / name, verify=False, inner_attention="separate", **options)
        return report, weights(tmp_path / name)

    report, first = converted("first")
    file = (tmp_path / "first" / "model.safetensors").read_bytes()
    assert report["options"]["seed"] == 0
    assert converted("again", seed=0)[0]["model"]["files"] == report["model"]["files"]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == file
    assert converted("first")[0]["unchanged"]
    with pytest.raises(CheckpointError, match="--overwrite"):
        converted("first", seed=1)

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    _, sharded = converted("sharded", max_shard_size="40KB", dtype=torch.bfloat16)
    torch.set_num_threads(threads)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    assert all(torch.equal(sharded[name], tensor.bfloat16()) for name, tensor in first.items())

    _, other = converted("other", seed=1)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    drawn = {name for name in first if ".inner_query." in name or ".inner_key." in name}
    assert changed == {name for name in drawn if name.endswith("_proj.weight")}
    assert len(changed) == 3 * 2 * 4  # layers, branches, projections with W_O
    for name in drawn - changed:
        assert torch.equal(first[name], torch.full_like(first[name], float(name.endswith("norm.weight"))))
    assert len({first[name].flatten()[0].item() for name in changed}) == len(changed), "no two tensors are alike"
    assert report["model"]["inner_parameters"] == sum(first[name].numel() for name in drawn)


def test_a_large_tensor_is_drawn_piece_by_piece():
    config = NexusConfig(initializer_range=0.5)
    tensor = initial("model.layers.0.self_attn.inner_query.q_proj.weight", torch.Size([3, PIECE // 2]), config, 7)
    assert tensor.std().item() == pytest.approx(0.5, abs=0.01)
    assert tensor.mean().item() == pytest.approx(0, abs=0.01)
    assert len(tensor.unique()) > 0.9 * tensor.numel(), "no piece repeats another"


@pytest.mark.parametrize("arm", ["shared", "separate", "self"])
def test_the_output_projection_is_chosen_by_width_and_the_report_says_why(arm, source, wide, tmp_path, nexus):
    arguments = ("--inner-attention", arm, "--no-verify")
    status, output, _ = nexus("convert", wide, tmp_path / "wide", *arguments)
    chosen, why = "with", "4 heads of 16 are not as wide as the model, 48"
    if arm == "self":
        chosen, why = "without", "self has no projections"
    assert status == 0
    assert f"Inner attention: {arm}, refines query, key, {chosen} W_O between the levels ({why})." in output
    model = json.loads((tmp_path / "wide" / "conversion_report.json").read_text())["model"]
    assert model["inner_output_projection"] == (chosen == "with")
    assert model["inner_output_projection_because"] == why
    if arm == "self":
        return
    assert f"{model['inner_parameters']:,} of inner layers drawn at random" in output or arm == "shared"
    for options, line in (
        ((), "without W_O between the levels (4 heads of 16 are as wide as the model, 64)"),
        (("--inner-output-projection",), "with W_O between the levels (as asked)"),
        (("--no-inner-scale",), "no inner scale"),
        (("--order", "1"), "nesting       none"),
    ):
        assert line in nexus("convert", source, tmp_path / "x", *arguments, *options, "--dry-run")[1]
