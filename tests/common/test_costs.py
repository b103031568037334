"""The costs that bound every measured ratio, against PyTorch's own counter, real caches and real parameters."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from common import costs
from nexus_transformers import NexusConfig, NexusForCausalLM, NexusForMaskedLM
from nexus_transformers.attention_nexus import NexusAttentionCall
from nexus_transformers.inputs_nexus import block_size

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": None,
    "eos_token_id": None,
}
VARIANTS = {
    "order 1": {"attention_order": 1},
    "order 2": {"attention_order": 2},
    "order 3": {"attention_order": 3},
    "first layer only": {"attention_order": [2, 1, 1]},
    "orders 1, 3, 2": {"attention_order": [1, 3, 2]},
    "queries only": {"attention_order": 3, "refine_key": False},
    "keys only": {"attention_order": 3, "refine_query": False},
    "values too": {"attention_order": 3, "refine_value": True},
    "values only": {"attention_order": 2, "refine_query": False, "refine_key": False, "refine_value": True},
    "W_O between levels": {"attention_order": [3, 2, 1], "inner_output_projection": True, "head_dim": 16},
    "separate": {"attention_order": [1, 2, 2], "inner_attention": "separate"},
    "separate, queries only": {"attention_order": 2, "inner_attention": "separate", "refine_key": False},
    "separate, values too, W_O": {
        "attention_order": 2,
        "inner_attention": "separate",
        "refine_value": True,
        "inner_output_projection": True,
    },
    "self": {"attention_order": [1, 2, 3], "inner_attention": "self", "head_dim": 16},
    "self, keys only": {"attention_order": 3, "inner_attention": "self", "refine_query": False},
    "gates": {"attention_order": 2, "inner_gate": True},
    "inner window": {"attention_order": [3, 2, 1], "inner_window": 5},
    "inner window, queries only": {"attention_order": 2, "inner_window": 5, "refine_key": False},
    "inner window, separate": {"attention_order": 2, "inner_window": 5, "inner_attention": "separate"},
    "inner window, self": {"attention_order": 2, "inner_window": 5, "inner_attention": "self", "head_dim": 16},
    "plain MLP, untied": {"mlp_gated": False, "tie_word_embeddings": False},
    "wide heads, order 1": {"attention_order": 1, "head_dim": 16},
    "llama": None,
}
BATCH, LENGTH = 2, 24

each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def build(changes: dict | None, backend: str = "eager"):
    if changes is None:
        return LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=3, attn_implementation=backend))
    return NexusForCausalLM(NexusConfig(**SHAPE | changes, num_layers=3, attn_implementation=backend))


def token_ids(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(1, SHAPE["vocab_size"], (BATCH, length))


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@each_variant
def test_forward_flops_are_those_that_pytorch_counts(changes):
    model, ids = build(changes), token_ids()
    expected = costs.flops(model.config, BATCH, LENGTH, attention="all")
    assert counted(lambda: model(ids, use_cache=False)) == expected["total"]
    assert expected["total"] == sum(number for part, number in expected.items() if part != "total")


@each_variant
def test_prefill_and_decoding_flops_are_those_that_pytorch_counts(changes):
    model, ids = build(changes), token_ids()
    cache = DynamicCache(config=model.config)
    prefill = counted(lambda: model(ids, past_key_values=cache, logits_to_keep=1))
    assert prefill == costs.flops(model.config, BATCH, LENGTH, logits=1, attention="all")["total"]
    step = counted(lambda: model(ids[:, :1], past_key_values=cache))
    assert step == costs.flops(model.config, BATCH, 1, past=LENGTH, attention="all")["total"]


@each_variant
@pytest.mark.parametrize("checkpointed", [False, True])
def test_training_flops_are_those_that_pytorch_counts(changes, checkpointed):
    model, ids = build(changes).train(), token_ids()
    if checkpointed:
        model.gradient_checkpointing_enable()
    step = counted(lambda: model(ids, labels=ids, use_cache=False).loss.backward())
    expected = costs.flops(model.config, BATCH, LENGTH, training=True, checkpointed=checkpointed, attention="all")
    assert step == expected["total"]


@each_variant
def test_the_fused_attention_of_a_cpu_is_what_pytorch_does_not_count(changes):
    model, ids = build(changes, "sdpa"), token_ids()
    expected = costs.flops(model.config, BATCH, LENGTH)
    assert counted(lambda: model(ids, use_cache=False)) == expected["total"] - expected["attention"]


def test_causal_attention_counts_a_token_s_own_and_earlier_ones():
    config = NexusConfig(**SHAPE, num_layers=1, attention_order=1)
    products = 2 * 2 * 4 * 8  # multiply and add, scores and values, heads, head size
    assert costs.flops(config, 1, 3)["attention"] == products * (1 + 2 + 3)
    assert costs.flops(config, 1, 2, past=5)["attention"] == products * (6 + 7)
    assert costs.flops(config, 1, 3, attention="all")["attention"] == products * 9
    assert costs.flops(config, 1, 3, training=True)["attention"] == products / 2 * 7 * 6


def test_the_fused_kernel_of_a_cpu_computes_whole_blocks_of_512_keys():
    for length in (1, 2, 100, 512):
        assert costs.pairs(length, 0, "cpu") == length * length
    assert costs.pairs(1024, 0, "cpu") == 512 * 512 + 512 * 1024
    assert costs.pairs(700, 0, "cpu") == 512 * 512 + (700 - 512) * 700
    assert costs.pairs(1, 30, "cpu") == costs.pairs(1, 30, "causal") == costs.pairs(1, 30, "all") == 31
    for length in (513, 1000, 4096):
        assert costs.pairs(length, 0, "causal") < costs.pairs(length, 0, "cpu") < costs.pairs(length, 0, "all")


def test_a_window_counts_what_a_token_sees():
    assert costs.pairs(6, 0, "causal", 4) == 1 + 2 + 3 + 4 + 4 + 4
    assert costs.pairs(3, 5, "causal", 4) == 3 * 4
    assert costs.pairs(3, 2, "causal", 4) == 3 + 4 + 4
    assert costs.pairs(1, 30, "cpu", 4) == 4
    assert costs.pairs(6, 0, "causal", 7) == costs.pairs(6, 0, "causal")
    for window in (1, 5, 32, 100):
        size = block_size(window)
        assert costs.pairs(2 * size + 1, 0, "cpu", window) == 3 * size * 2 * size, "three blocks"


ENCODERS = {
    "encoder": {"attention_order": [2, 1, 1]},
    "encoder, window": {"attention_order": [2, 1, 1], "inner_window": 5},
    "encoder, head of ESM-2": {"attention_order": 1, "lm_head_transform": True, "tie_word_embeddings": False},
}


@pytest.mark.parametrize("changes", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("training", [False, True])
def test_flops_of_an_encoder_are_those_that_pytorch_counts(changes, training):
    config = NexusConfig(**SHAPE | changes, is_causal=False, num_layers=3, attn_implementation="eager")
    model, ids = NexusForMaskedLM(config), token_ids()
    expected = costs.flops(config, BATCH, LENGTH, training=training, attention="all")["total"]
    assert counted((lambda: model(ids, labels=ids).loss.backward()) if training else (lambda: model(ids))) == expected
    assert costs.cache_bytes(config, BATCH, LENGTH, itemsize=4) == 0
    assert costs.parameters(config) == sum(each.numel() for each in model.parameters() if each.dim() == 2)


def test_a_window_of_an_encoder_counts_both_sides():
    assert costs.pairs_both_sides(6, "causal", 2) == 3 + 4 + 5 + 5 + 4 + 3
    assert costs.pairs_both_sides(6, "causal") == costs.pairs_both_sides(6, "cpu", 2) == 36
    config = NexusConfig(**SHAPE, num_layers=1, attention_order=2, inner_window=2, is_causal=False)
    assert costs.flops(config, 1, 6)["attention"] == 2 * 2 * 4 * 8 * (24 + 36)


@each_variant
def test_cache_bytes_are_those_of_a_real_cache(changes):
    model = build(changes)
    cache = DynamicCache(config=model.config)
    model(token_ids(), past_key_values=cache)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert costs.cache_bytes(model.config, BATCH, LENGTH, itemsize=4) == kept


@each_variant
def test_parameters_are_those_of_the_model_without_norms_and_gates(changes):
    model = build(changes)
    matrices = [parameter.numel() for parameter in model.parameters() if parameter.dim() == 2]
    assert costs.parameters(model.config) == sum(matrices)


@each_variant
def test_bytes_read_count_every_use_of_a_weight(changes):
    model, used = build(changes), 0

    def count(module, inputs, output):
        nonlocal used
        used += module.weight.nbytes

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    model(token_ids(1))
    assert costs.bytes_read(model.config, BATCH, LENGTH, itemsize=4)["weights"] == used


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "llama"])
def test_bytes_read_of_the_cache_are_the_keys_and_values_of_every_call(name):
    model, read = build(VARIANTS[name]), 0
    cache = DynamicCache(config=model.config)
    model(token_ids(LENGTH - 1), cache=cache)

    def count(module, inputs, output):
        nonlocal read
        read += sum(part.nbytes for part in output[2])

    for module in model.modules():
        if isinstance(module, NexusAttentionCall):
            module.register_forward_hook(count)
    model(token_ids(1), cache=cache)
    assert costs.bytes_read(model.config, BATCH, LENGTH, itemsize=4)["cache"] == read


def test_a_standard_cache_is_read_once():
    llama = build(None).config
    once = costs.cache_bytes(llama, BATCH, LENGTH, itemsize=2)
    assert costs.bytes_read(llama, BATCH, LENGTH, itemsize=2)["cache"] == once


@pytest.mark.parametrize("past", [0, 3, 9])
@pytest.mark.parametrize("length", [9, 12, 30])
def test_pairs_within_a_window_are_those_of_each_query(past, length):
    kept = min(past, 7)  # of the keys before, a cache keeps one less than the window
    assert costs.pairs(length, past, "causal", 8) == sum(min(kept + i + 1, 8) for i in range(length))
