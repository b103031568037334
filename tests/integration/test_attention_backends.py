"""Attention backends agree, may be changed at run time, and find in the code what serving engines look for."""

import ast
from pathlib import Path

import pytest
import torch
from arms import ARMS, build, each_arm
from torch import nn

import nexus_transformers
from nexus_transformers import NexusForCausalLM
from nexus_transformers.attention_nexus import NexusAttentionCall

ROOT = Path(nexus_transformers.__file__).parent
NESTINGS = ARMS | {
    "self": {**ARMS["self"], "num_key_value_heads": 4},  # one kernel of flex attention to compile, in place of two
    "order 1": {"attention_order": 1},
    "window": {"attention_order": [3, 2], "sliding_window": 7},
    "inner window": {"attention_order": [3, 2], "inner_window": 7},
    "two windows": {"attention_order": [3, 2], "sliding_window": 20, "inner_window": 7},
}
each_nesting = pytest.mark.parametrize("nesting", NESTINGS.values(), ids=NESTINGS)


@pytest.mark.parametrize("backend", ["sdpa", "flex_attention"])
@each_nesting
def test_backends_agree_with_eager_on_padded_batches(nesting, backend):
    """
    Tolerance 2e-4: orders of summation differ, and logits are of size 10. The length is one at which PyTorch 2.13's own
    flex attention is right on every CPU: with AVX2 it returns NaN at 40, without any code of ours.
    """
    model = build(**nesting)
    ids = torch.randint(1, 64, (2, 64))
    mask = torch.ones_like(ids)
    mask[0, :11] = 0
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits[mask.bool()]
        wrong = model(ids).logits[mask.bool()]
        model.set_attn_implementation(backend)
        actual = model(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=0)
    assert (wrong - expected).abs().max() > 0.1, "the mask matters here"


def test_flash_attention_that_is_not_installed_is_said_to_be_missing():
    model = build()
    with pytest.raises(ImportError, match="FlashAttention2"):
        model.set_attn_implementation("flash_attention_2")


@each_arm
def test_each_attention_call_is_one_that_serving_engines_recognise(arm):
    """
    The rule by which vLLM's Transformers backend finds attention: a module with an int `layer_idx`, unique in the
    model, one integer in its path, `is_causal` not False, and a `forward` as in the test below.
    """
    model = build(**arm)
    calls = {name: module for name, module in model.named_modules() if isinstance(module, NexusAttentionCall)}
    assert sorted(call.layer_idx for call in calls.values()) == list(range(model.config.num_hidden_layers))
    for name, call in calls.items():
        assert sum(part.isdigit() for part in name.split(".")) == 1
        assert call.is_causal is True
        assert call.scaling == 8**-0.5
        assert not list(call.parameters())


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_serving_engine_is_told_what_it_cannot_hold(engine):
    """Its slots all have as many heads; those of "self" with grouped heads do not."""
    from transformers import AttentionInterface

    AttentionInterface.register(engine, lambda *_, **__: None)
    config = build(**ARMS["self"]).config
    with pytest.raises(ValueError, match="A serving engine needs as many heads in every slot"):
        NexusForCausalLM._from_config(config, attn_implementation=engine)
    for arm in ({**ARMS["self"], "num_key_value_heads": 4}, ARMS["shared"]):
        NexusForCausalLM._from_config(build(**arm).config, attn_implementation=engine)


def test_one_forward_calls_the_attention_function_as_serving_engines_look_for_it():
    """Exactly one call of a local name assigned from `get_interface`, with `scaling=` and `**kwargs` passed on."""
    tree = ast.parse((ROOT / "attention_nexus.py").read_text())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for function in node.body:
                if isinstance(function, ast.FunctionDef) and function.name == "forward":
                    interfaces = {
                        target.id
                        for statement in ast.walk(function)
                        if isinstance(statement, ast.Assign) and "get_interface" in ast.dump(statement.value)
                        for target in statement.targets
                    }
                    uses = [
                        used
                        for used in ast.walk(function)
                        if isinstance(used, ast.Call) and getattr(used.func, "id", None) in interfaces
                    ]
                    if interfaces:
                        found[node.name] = uses
    assert list(found) == ["NexusAttentionCall"]
    (use,) = found["NexusAttentionCall"]
    keywords = {keyword.arg: keyword.value for keyword in use.keywords}
    assert ast.unparse(keywords["scaling"]) == "self.scaling"
    assert None in keywords, "**kwargs reach the interface: engines pass theirs through the model"


def test_the_keywords_of_a_forward_reach_every_attention_call():
    """As serving engines pass `attention_instances`: through the model, down to the interface."""
    from transformers import AttentionInterface

    seen = []

    def engine(module: nn.Module, query, key, value, attention_mask, engine_state=None, **kwargs):
        seen.append((module.layer_idx, engine_state, query.shape, key.shape, value.shape))
        return query.transpose(1, 2), None

    AttentionInterface.register("recording_engine", engine)
    model = build(attention_order=[2, 1])
    model.set_attn_implementation("recording_engine")
    model(torch.randint(1, 64, (1, 5)), use_cache=False, engine_state="state")
    shapes = (torch.Size([1, 4, 5, 8]), torch.Size([1, 2, 5, 8]), torch.Size([1, 2, 5, 8]))
    assert seen == [(0, "state", *shapes), (1, "state", *shapes), (2, "state", *shapes)]


class Slot:
    """What SGLang has for each slot of the cache: attention over flat tokens, all slots with as many heads."""

    def __init__(self, config):
        self.heads, self.grouped, self.size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.calls = 0

    def __call__(self, query, key, value, batch):
        assert batch == "batch"
        self.calls += 1
        query, key, value = (
            flat.view(1, flat.shape[0], heads, self.size).transpose(1, 2)
            for flat, heads in ((query, self.heads), (key, self.grouped), (value, self.grouped))
        )
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.scaling, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(2)[0]  # (tokens, H*d)


def as_sglang(module, query, key, value, mask, scaling=None, attention_instances=None, forward_batch=None, **kwargs):
    """The rule of SGLang's Transformers backend: the slot by its number, flat tokens in, flat tokens out."""
    slot = attention_instances[module.layer_idx]
    slot.scaling = float(scaling)
    query, key, value = (x.transpose(1, 2).reshape(x.shape[-2], -1) for x in (query, key, value))
    return slot(query, key, value, forward_batch), None


@pytest.mark.parametrize("arm", [arm for arm in NESTINGS if "window" not in arm])
def test_sglang_s_rule_gives_the_logits_of_transformers(arm):
    """The rule, not SGLang, which was never run. Tolerance 1e-4: the order of summation differs."""
    from transformers import AttentionInterface

    AttentionInterface.register("sglang", as_sglang)
    model = build(**NESTINGS[arm])
    ids = torch.randint(1, 64, (1, 21))
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        model.set_attn_implementation("sglang")
        slots = [Slot(model.config) for _ in range(model.config.num_hidden_layers)]
        actual = model(ids, use_cache=False, attention_instances=slots, forward_batch="batch").logits
        wrong = model(ids.flip(1), use_cache=False, attention_instances=slots, forward_batch="batch").logits
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert (wrong - expected).abs().max() > 0.1
    assert [slot.calls for slot in slots] == [2] * len(slots), "each slot once per forward pass"
