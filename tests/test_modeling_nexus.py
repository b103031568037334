"""
The model against its definition (tests/reference.py), against Llama where the two coincide, and against itself: cached
and uncached, saved and loaded, in float32 and bfloat16. Every check that two things agree has a control showing that
it can fail.
"""

import copy
import functools
import re

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM, QuantizedCache, StaticCache
from transformers.utils import output_capturing

import reference
from nexus_transformers import NexusConfig, NexusForCausalLM

TINY = {
    "attention_order": 3,
    "inner_gate": True,
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,  # attention far from uniform, so that nesting matters
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}

SEPARATE = {"inner_attention": "separate", "attention_order": 2}
SELF = {"inner_attention": "self"}

NESTINGS = {
    "order 1": {"attention_order": 1},
    "order 2": {"attention_order": 2},
    "order 3": {},
    "orders 3, 1, 2": {"attention_order": [3, 1, 2], "num_layers": 3},
    "only queries": {"refine_key": False},
    "only keys": {"refine_query": False},
    "only values": {"refine_query": False, "refine_key": False, "refine_value": True, "attention_order": 2},
    "values too": {"refine_value": True},
    "keys and values": {"refine_query": False, "refine_value": True},
    "queries and values": {"refine_key": False, "refine_value": True},
    "W_O between levels": {"inner_output_projection": True},
    "separate queries": {**SEPARATE, "refine_key": False},
    "separate queries and keys": SEPARATE,
    "separate queries, keys, values": {**SEPARATE, "refine_value": True},
    "separate keys": {**SEPARATE, "refine_query": False},
    "separate, W_O between levels": {**SEPARATE, "refine_value": True, "inner_output_projection": True},
    "separate, order 1": {**SEPARATE, "attention_order": 1},
    "self": {**SELF, "attention_order": 2},
    "self, order 3": SELF,
    "self, order 1": {**SELF, "attention_order": 1},
    "self, only queries": {**SELF, "refine_key": False},
    "self, only keys": {**SELF, "refine_query": False},
    "inner window": {"inner_window": 4},
    "inner window, only queries": {"inner_window": 4, "refine_key": False},
    "inner window, values too": {"inner_window": 4, "refine_value": True},
    "inner window, separate": {**SEPARATE, "inner_window": 4},
    "inner window, self": {**SELF, "inner_window": 4},
}

KINDS = {"shared": {}, "separate": SEPARATE, "self": SELF}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.6,
    "logits_scaling": 2.0,
}
TWO_ROPES = {"sliding_window": 40, "sliding_layers": [0], "sliding_rope_parameters": {"rope_theta": 20.0}}

VARIANTS = {
    "no gates": {"inner_gate": False},
    "no scale": {"inner_scale": False},
    "neither": {"inner_gate": False, "inner_scale": False},
    "self, neither": {**SELF, "inner_gate": False, "inner_scale": False},
    "self, multi-head": {**SELF, "num_key_value_heads": 4},
    "separate, neither": {**SEPARATE, "inner_gate": False, "inner_scale": False},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 16, "inner_output_projection": True},
    "self, wide heads": {**SELF, "head_dim": 16},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "separate, biases": {**SEPARATE, "attention_bias": True},
    "untied": {"tie_word_embeddings": False},
    **{f"multipliers, {name}": {**kind, **MULTIPLIERS} for name, kind in KINDS.items()},
    **{f"a layer without positions, {name}": {**kind, "layers_without_rope": [1]} for name, kind in KINDS.items()},
    **{f"two rotary embeddings, {name}": {**kind, **TWO_ROPES} for name, kind in KINDS.items()},
}

BATCH, LENGTH = 3, 12

each_nesting = pytest.mark.parametrize("changes", NESTINGS.values(), ids=NESTINGS)
each_backend = pytest.mark.parametrize("backend", ["eager", "sdpa"])
each_side = pytest.mark.parametrize("side", ["left", "right"])

assert_close = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=0, check_dtype=False)


def build(backend="sdpa", gate=None, **changes) -> NexusForCausalLM:
    """A tiny model with no parameter at a special value: gates in [0, 1.2] unless one value is given for all."""
    torch.manual_seed(0)
    model = NexusForCausalLM(NexusConfig(**TINY | changes, attn_implementation=backend)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_gate_" in name:
                parameter.uniform_(0, 1.2) if gate is None else parameter.fill_(gate)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model


def gates(model) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "_gate_" in name}


def token_ids(batch=BATCH, length=LENGTH) -> torch.Tensor:
    return torch.randint(1, TINY["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(1))


def padded(side: str) -> dict[str, torch.Tensor]:
    """Inputs whose three rows have 0, 3 and 7 padding tokens. Positions count tokens only."""
    padding = torch.arange(LENGTH) < torch.tensor([[0], [3], [7]])
    mask = (~(padding if side == "left" else padding.flip(-1))).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": token_ids() * mask, "attention_mask": mask, "position_ids": positions}


def llama_of(model: NexusForCausalLM) -> LlamaForCausalLM:
    """Transformers' Llama with this model's weights, of which only gates are left out."""
    shared = NexusConfig.__annotations__.keys() & LlamaConfig.__annotations__.keys()
    config = LlamaConfig(
        **{name: getattr(model.config, name) for name in shared},
        num_hidden_layers=model.config.num_layers,
        attn_implementation=model.config._attn_implementation,
    )
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if "_gate_" not in name})
    return llama.to(model.dtype)


# The definition


@each_backend
@pytest.mark.parametrize("changes", (NESTINGS | VARIANTS).values(), ids=NESTINGS | VARIANTS)
def test_the_model_computes_the_definition(changes, backend):
    model, ids = build(backend, **changes), token_ids()
    assert_close(model(ids).logits, reference.logits(model.state_dict(), model.config, ids))


@each_side
@each_backend
@each_nesting
def test_the_model_computes_the_definition_on_padded_batches(changes, backend, side):
    model, inputs = build(backend, **changes), padded(side)
    tokens = inputs["attention_mask"].bool()
    expected = reference.logits(model.state_dict(), model.config, **inputs)
    assert_close(model(**inputs).logits[tokens], expected[tokens])


@pytest.mark.parametrize("changes", (NESTINGS | VARIANTS).values(), ids=NESTINGS | VARIANTS)
def test_the_gradient_is_that_of_the_definition(changes):
    model, ids = build(**changes), token_ids()
    parameters = dict(model.named_parameters())
    twins = {name: parameter.detach().double().requires_grad_() for name, parameter in parameters.items()}
    actual = torch.autograd.grad(model(ids).logits.square().mean(), parameters.values())
    expected = torch.autograd.grad(reference.logits(twins, model.config, ids).square().mean(), twins.values())
    for name, one, other in zip(parameters, actual, expected, strict=True):
        tolerance = 1e-7 + 1e-4 * other.abs().max().item()
        assert_close(one, other, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_the_inner_scale_is_computed_in_float32():
    inner_norm = build(inner_gate=False).model.layers[0].self_attn.inner_norm
    x, attended = torch.randn(2, 5, 32) * 1000, torch.randn(2, 5, 32)  # squares of x overflow float16
    expected = attended * reference.root_mean_square(x) / reference.root_mean_square(attended)
    refined = inner_norm(x.half(), attended.half(), level=1, branches=["query"])["query"]
    assert refined.dtype == torch.float16
    torch.testing.assert_close(refined.float(), expected, atol=0, rtol=2e-3)


@pytest.mark.parametrize(
    "changes, wrong",
    [
        ({}, {"attention_order": 2}),
        ({"inner_gate": False, "attention_order": 2}, {"attention_order": 3}),
        ({"inner_gate": False, "attention_order": [3, 2]}, {"attention_order": [2, 3]}),
        ({}, {"inner_scale": False}),
        ({}, {"refine_query": False}),
        ({}, {"refine_key": False}),
        ({}, {"inner_gate": False}),
        ({}, {"refine_value": True, "inner_gate": False}),
        ({}, {"inner_output_projection": True}),
        ({"inner_output_projection": True}, {"inner_output_projection": False}),
        (SEPARATE, {"inner_attention": "shared"}),
        (SELF, {"inner_attention": "shared"}),
        ({}, {"inner_attention": "self"}),
        (SELF, {"inner_scale": False}),
        ({"inner_window": 4}, {"inner_window": 5}),
        ({"inner_window": 4}, {"inner_window": None}),
        ({}, {"rope_parameters": {"rope_theta": 505.0}}),
    ],
    ids=str,
)
def test_the_comparison_notices_a_wrong_field(changes, wrong):
    model, ids = build(**changes), token_ids()
    config = copy.deepcopy(model.config)
    for name, value in wrong.items():
        setattr(config, name, value)
    assert (model(ids).logits - reference.logits(model.state_dict(), config, ids)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes, one, other",
    [
        ({}, "query_gate", "key_gate"),
        ({}, "gate_1", "gate_2"),
        ({"refine_value": True}, "query_gate_2", "value_gate_2"),
        (SELF, "query_gate", "key_gate"),
        (SEPARATE, ".inner_query.", ".inner_key."),
        ({**SEPARATE, "refine_value": True}, ".inner_key.", ".inner_value."),
        (SEPARATE, ".inner_key.", "."),
    ],
)
def test_the_comparison_notices_swapped_parameters(changes, one, other):
    model, ids = build(**changes), token_ids()
    weights = model.state_dict()
    for name in [name for name in weights if one in name]:
        twin = name.replace(one, other)
        weights[name], weights[twin] = weights[twin], weights[name]
    assert (model(ids).logits - reference.logits(weights, model.config, ids)).abs().max() > 1e-3


def test_the_comparison_notices_any_gate_one_percent_off():
    model, ids = build(), token_ids()
    logits = model(ids).logits
    assert len(gates(model)) == 8  # 2 layers, 2 inner levels, 2 branches
    for name, gate in gates(model).items():
        weights = model.state_dict() | {name: gate * 1.01}
        assert (logits - reference.logits(weights, model.config, ids)).abs().max() > 1e-4, name


# Standard attention inside Nexus


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_backend
@pytest.mark.parametrize("order", [1, 2, 3, [1, 3]], ids=str)
def test_order_1_and_closed_gates_are_llama_bit_for_bit(order, backend, dtype, side):
    model = build(backend, gate=0.0, attention_order=order, attention_bias=True).to(dtype)
    inputs = padded(side) if side else {"input_ids": token_ids()}
    assert torch.equal(model(**inputs).logits, llama_of(model)(**inputs).logits)


@pytest.mark.parametrize("order", [2, 3])
def test_a_slightly_open_gate_is_not_llama(order):
    model, ids = build(gate=0.0, attention_order=order), token_ids()
    expected = llama_of(model)(ids).logits
    for name, gate in gates(model).items():
        with torch.no_grad():
            gate.fill_(0.05)
            # a level is heard through the gates of the next one only, so with those closed it is not heard at all
            heard = name.endswith(f"_gate_{order - 1}")
            assert torch.equal(model(ids).logits, expected) is not heard, name
            gate.fill_(0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_nesting
def test_open_gates_are_no_gates_bit_for_bit(changes, dtype):
    gated, ids = build(gate=1.0, **changes).to(dtype), token_ids()
    plain = build(**changes, inner_gate=False).to(dtype)
    assert not gates(plain)
    plain.load_state_dict({name: tensor for name, tensor in gated.state_dict().items() if "_gate_" not in name})
    assert torch.equal(gated(ids).logits, plain(ids).logits)


# Masks


@each_backend
@each_nesting
def test_a_token_affects_its_own_and_later_logits_only(changes, backend):
    model, ids = build(backend, **changes), token_ids(batch=1).expand(LENGTH, -1)
    changed = ids.clone()
    changed.diagonal().add_(1).remainder_(TINY["vocab_size"])  # row t has another token at position t
    difference = (model(changed).logits - model(ids).logits).abs().amax(-1)  # [t, position]
    affected = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu()
    assert difference[~affected].max() <= 1e-6
    assert difference[affected].min() > 1e-4


@each_side
@each_backend
@pytest.mark.parametrize("changes", [{}, {"inner_gate": False}, SEPARATE, SELF], ids=str)
def test_padding_rows_of_zeros_give_finite_logits_and_gradients(changes, backend, side):
    model, inputs = build(backend, **changes).train(), padded(side)
    assert not model.get_input_embeddings()(inputs["input_ids"])[inputs["attention_mask"] == 0].any()
    logits = model(**inputs).logits
    assert logits.isfinite().all()
    logits.square().mean().backward()  # through the padding positions too
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@each_backend
def test_a_ready_4d_mask_is_used_as_it_is(backend):
    model, inputs = build(backend), padded("right")
    visible = inputs["attention_mask"].bool()[:, None, None, :] & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    tokens = inputs["attention_mask"].bool()
    assert_close(model(**inputs | {"attention_mask": mask}).logits[tokens], model(**inputs).logits[tokens])


# The cache


def allocated_static_cache(config):
    """As `torch.export` and chunked prefill make it: every slot has room for values before the model runs."""
    cache = StaticCache(config, max_cache_len=LENGTH)
    cache.early_initialization(BATCH, config.num_key_value_heads, config.head_dim, torch.float32, torch.device("cpu"))
    return cache


def has_slots_of_other_heads(config) -> bool:
    """Past queries are cached by "self" only: they have as many heads as queries have."""
    return config.inner_attention == "self" and config.refine_query and config.attention_order != 1


CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "bare dynamic": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config, max_cache_len=LENGTH),
    "allocated static": allocated_static_cache,
}
CHUNKS = {"token by token": [1] * LENGTH, "chunks": [5, 1, 4, 2]}


def run_cached(model, cache, chunks, input_ids, attention_mask=None, position_ids=None) -> torch.Tensor:
    """The logits of all tokens, from as many forward passes as there are chunks."""
    logits, end = [], 0
    for size in chunks:
        start, end = end, end + size
        output = model(
            input_ids[:, start:end],
            attention_mask=None if attention_mask is None else attention_mask[:, :end],
            position_ids=None if position_ids is None else position_ids[:, start:end],
            past_key_values=cache,
        )
        logits.append(output.logits)
    assert cache.get_seq_length() == end
    return torch.cat(logits, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("make_cache", CACHES.values(), ids=CACHES)
@each_nesting
def test_cached_is_uncached(changes, make_cache, chunks):
    model, ids = build(**changes), token_ids()
    if make_cache is allocated_static_cache and has_slots_of_other_heads(model.config):
        with pytest.raises(ValueError, match="Slot 0 of this cache was allocated for 2 heads, and has 4"):
            run_cached(model, make_cache(model.config), chunks, ids)
        return
    assert_close(run_cached(model, make_cache(model.config), chunks, ids), model(ids, use_cache=False).logits)


@torch.no_grad()
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("make_cache", CACHES.values(), ids=CACHES)
@each_nesting
def test_cached_is_uncached_in_a_left_padded_batch(changes, make_cache, chunks):
    model, inputs = build("eager", **changes), padded("left")
    if make_cache is allocated_static_cache and has_slots_of_other_heads(model.config):
        pytest.skip("refused, see the test above")
    tokens = inputs["attention_mask"].bool()
    cached = run_cached(model, make_cache(model.config), chunks, **inputs)
    assert_close(cached[tokens], model(**inputs, use_cache=False).logits[tokens])


@torch.no_grad()
@each_nesting
def test_a_cropped_cache_continues_from_where_it_was_cut(changes):
    model, ids, cache = build(**changes), token_ids(), DynamicCache()
    model(torch.cat((ids[:, :6], ids[:, :3]), dim=1), past_key_values=cache)
    cache.crop(-3)  # assisted generation takes back rejected tokens in this way
    assert_close(model(ids[:, 6:], past_key_values=cache).logits, model(ids).logits[:, 6:])


@torch.no_grad()
@each_nesting
def test_a_quantized_cache_decodes(changes):
    model, ids = build(**changes), token_ids()
    try:
        cache = QuantizedCache("fp8", model.config)
    except ValueError:
        pytest.skip("the 8-bit cache, the only one that needs no further package, is in newer Transformers only")
    error = (run_cached(model, cache, [6, 1, 1, 4], ids) - model(ids).logits).abs()
    assert error[:, :6].max() <= 1e-5  # the first pass attends to what it has just computed
    assert 1e-3 < error[:, 6:].mean() < 0.2  # later ones to what 8 bits have kept of it


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "bare dynamic", "static"])
@pytest.mark.parametrize(
    "changes, ratio",
    [
        # (m + 1) / 2: keys at every level, values once
        ({"attention_order": 2}, 1.5),
        ({"attention_order": 3}, 2.0),
        ({"attention_order": [3, 1]}, 1.5),
        ({"attention_order": 3, "refine_query": False}, 2.0),
        # the same keys at every level
        ({"attention_order": 3, "refine_key": False}, 1.0),
        # values of the last level, too
        ({"attention_order": 3, "refine_value": True}, 2.5),
        # keys and values of each inner layer
        (SEPARATE, 3.0),
        ({**SEPARATE, "refine_value": True}, 4.0),
        ({**SEPARATE, "refine_key": False}, 2.0),
        ({**SEPARATE, "attention_order": 1}, 1.0),
        # per level the queries, of twice as many heads here, and the keys, once
        ({**SELF, "attention_order": 2}, 2.5),
        (SELF, 4.0),
        ({**SELF, "refine_query": False}, 2.0),
    ],
    ids=str,
)
def test_cache_size_relative_to_standard_attention(changes, ratio, kind):
    def cache_of(**changes):
        model = build(**changes)
        cache = CACHES[kind](model.config)
        run_cached(model, cache, CHUNKS["chunks"], token_ids())
        assert len(cache) == model.config.num_hidden_layers
        return cache

    def size(cache):
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    standard = cache_of(attention_order=1)
    assert size(standard) == 2 * 2 * BATCH * LENGTH * 2 * 8 * 4  # layers, K and V, B, T, G, d, bytes per float
    assert size(cache_of(**changes)) == ratio * size(standard)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@each_nesting
def test_generation_is_the_same_with_and_without_a_cache(changes, search):
    model = build(**changes)
    inputs = {name: padded("left")[name] for name in ("input_ids", "attention_mask")}
    search = search | {"max_new_tokens": 8, "do_sample": False, "repetition_penalty": 3.0}  # keeps it from one token
    generate = functools.partial(model.generate, **inputs, **search)
    expected = generate(use_cache=False)
    assert expected.shape == (BATCH, LENGTH + 8)
    assert len(expected[:, LENGTH:].unique()) > 3
    assert torch.equal(generate(use_cache=True), expected)
    assert torch.equal(generate(cache_implementation="static"), expected)


# Training


@each_nesting
def test_the_gradient_reaches_every_parameter(changes):
    model, ids = build(attention_bias=True, mlp_bias=True, tie_word_embeddings=False, **changes), token_ids()
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name


def test_closed_gates_learn_from_the_last_level_inwards():
    model, ids = build(gate=0.0), token_ids()

    def gates_with_gradient():
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {name[-6:] for name, gate in gates(model).items() if gate.grad.abs().item() > 1e-6}

    assert gates_with_gradient() == {"gate_2"}  # level 1 is not heard yet, see above
    with torch.no_grad():
        for name, gate in gates(model).items():
            gate.fill_(0.01 if name.endswith("gate_2") else 0.0)
    assert gates_with_gradient() == {"gate_1", "gate_2"}


@pytest.mark.parametrize("changes", [{}, SEPARATE, SELF], ids=str)
def test_gradient_checkpointing_changes_no_gradient(changes):
    model, ids = build(**changes).train(), token_ids()

    def gradients():
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected = gradients()
    model.gradient_checkpointing_enable()
    assert_close(gradients(), expected, atol=1e-6)


@pytest.mark.parametrize("inner_scale", [True, False])
@pytest.mark.parametrize("dtype, moves", [(torch.float32, True), (torch.bfloat16, False)], ids=str)
def test_gates_train_in_float32_under_autocast_and_stand_still_in_bfloat16(dtype, moves, inner_scale):
    model, ids = build(gate=0.05, inner_scale=inner_scale).to(dtype).train(), token_ids()
    before = {name: gate.item() for name, gate in gates(model).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, gate in gates(model).items():
        assert gate.dtype == dtype and gate.grad.item() != 0, name
        assert (gate.item() != before[name]) is moves, name


def test_trainer_decays_matrices_and_no_gates(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = build(attention_bias=True, **SEPARATE, tie_word_embeddings=False)
    trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    decayed = set(trainer.get_decay_parameter_names(model))
    assert decayed == {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
    assert gates(model) and not decayed & gates(model).keys()


def test_dropout_acts_while_training_only():
    model, plain, ids = build(attention_dropout=0.5), build(), token_ids()
    assert torch.equal(model(ids).logits, plain(ids).logits)
    model.train()
    torch.manual_seed(1)
    first, second = model(ids).logits, model(ids).logits
    assert not torch.allclose(first, second, atol=1e-2)
    torch.manual_seed(1)
    assert torch.equal(model(ids).logits, first)  # so it was the seed that made the second differ


# Inputs and outputs


@pytest.mark.parametrize("changes", [{}, {"refine_key": False}, {"attention_order": [1, 3]}], ids=str)
def test_there_is_one_attention_map_per_attention_call(changes):
    model, ids = build("eager", **changes), token_ids()
    maps = model(ids, output_attentions=True).attentions
    assert len(maps) == sum(model.config.layer_orders)
    assert all(one.shape == (BATCH, 4, LENGTH, LENGTH) for one in maps)
    stacked = torch.stack(maps)
    assert_close(stacked.sum(-1), torch.ones(stacked.shape[:-1]))
    assert not stacked.triu(1).any()
    assert (stacked[1:] - stacked[:-1]).abs().amax((1, 2, 3, 4)).min() > 0.1  # no two in a row are the same


def test_hidden_states_are_the_embeddings_and_one_per_layer():
    model, ids = build(), token_ids()
    states = model(ids, output_hidden_states=True).hidden_states
    assert len(states) == model.config.num_layers + 1 != model.config.num_hidden_layers + 1
    assert torch.equal(states[0], model.get_input_embeddings()(ids))
    assert torch.equal(model.lm_head(states[-1]), model(ids).logits)


@pytest.mark.skipif(not hasattr(output_capturing, "selected_hidden_states"), reason="newer Transformers only")
@pytest.mark.parametrize("index", [0, 1, -1, -2, -3])
def test_hidden_states_can_be_selected_by_index(index):
    model, ids = build(), token_ids()
    every = model(ids, output_hidden_states=True).hidden_states
    selected = model(ids, output_hidden_states=[index]).hidden_states
    assert [state is not None for state in selected] == [number == index % 3 for number in range(3)]
    assert torch.equal(selected[index], every[index])


@pytest.mark.parametrize("kept", [1, 5, torch.tensor([0, 7, 3])], ids=str)
def test_logits_to_keep_selects_positions(kept):
    model, ids = build(), token_ids()
    positions = kept if isinstance(kept, torch.Tensor) else torch.arange(LENGTH - kept, LENGTH)
    assert_close(model(ids, logits_to_keep=kept).logits, model(ids).logits[:, positions], atol=1e-6)


def test_the_loss_is_the_cross_entropy_of_the_next_token_where_labelled():
    model, ids = build(), token_ids()
    labels = ids.clone()
    labels[0, :5] = labels[2, 7:] = -100
    output = model(ids, labels=labels)
    predicted, wanted = output.logits[:, :-1], labels[:, 1:]
    losses = cross_entropy(predicted[wanted != -100], wanted[wanted != -100], reduction="none")
    assert len(losses) == 3 * 11 - 4 - 5
    assert_close(output.loss, losses.mean())
    assert_close(model(ids, labels=labels, num_items_in_batch=100).loss, losses.sum() / 100)
    assert model(ids).loss is None


def test_embeddings_may_be_passed_instead_of_ids():
    model, ids = build(), token_ids()
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(ids).logits)
    for inputs in ({}, {"input_ids": ids, "inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**inputs)


@pytest.mark.parametrize("order", [0, [2], [2, 1, 1], [2, -1]], ids=str)
def test_an_order_set_to_nonsense_is_an_error_when_the_model_is_built(order):
    config = NexusConfig(**TINY)
    config.attention_order = order
    with pytest.raises(ValueError, match="attention_order"):
        NexusForCausalLM(config)


@each_nesting
def test_the_tensor_parallel_plan_names_every_projection_and_nothing_else(changes):
    model = build(**changes).model
    projections = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    planned = model.config.base_model_tp_plan.keys() - {"embed_tokens"}  # which some releases add by themselves
    assert {re.sub(r"\d+", "*", name) for name in projections} == planned


# Saving and loading


@pytest.mark.parametrize("load", [NexusForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, SEPARATE, SELF], ids=str)
def test_a_saved_model_loads_as_it_was(changes, load, tmp_path):
    model, ids = build(**changes), token_ids()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is NexusForCausalLM and not loaded.training
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert torch.equal(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is model.config.tie_word_embeddings


def test_another_rope_theta_at_load_gives_other_frequencies(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    rope = {"rope_type": "default", "rope_theta": 1000.0}
    loaded = NexusForCausalLM.from_pretrained(tmp_path, rope_parameters=rope)
    assert_close(loaded.model.rotary_emb.inv_freq, 1000.0 ** (-torch.arange(0, 8, 2) / 8), atol=1e-6)
    assert not torch.allclose(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


def test_a_nested_model_loads_as_a_standard_one(tmp_path):
    model, ids = build(), token_ids()
    model.save_pretrained(tmp_path)
    loaded = NexusForCausalLM.from_pretrained(tmp_path, attention_order=1)
    assert torch.equal(loaded(ids).logits, llama_of(model)(ids).logits)
    assert not torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-2)


@pytest.mark.parametrize("order", [3, [1, 3]], ids=str)
def test_the_order_can_be_chosen_at_load(order, tmp_path):
    model, ids = build(attention_order=2, inner_gate_init=0.25), token_ids()
    model.save_pretrained(tmp_path)
    loaded = NexusForCausalLM.from_pretrained(tmp_path, attention_order=order)
    assert loaded.config.attention_order == order
    saved = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        if name.endswith("_gate_1"):
            assert torch.equal(tensor, torch.tensor([0.25])), "of the level that is new"
        else:
            assert torch.equal(tensor, saved[name.replace("_gate_2", "_gate_1")]), name
    assert_close(loaded(ids).logits, reference.logits(loaded.state_dict(), loaded.config, ids))


@pytest.mark.parametrize("arm", ["shared", "self"])
@pytest.mark.parametrize("order", [3, 4])
def test_a_higher_order_at_load_begins_as_the_saved_function(arm, order, tmp_path):
    """The gates of new levels are closed, and come before the trained ones."""
    model, ids = build(attention_order=2, inner_gate=True, inner_attention=arm), token_ids()
    assert min(gate.item() for gate in model.gates().values()) > 0
    model.save_pretrained(tmp_path)
    loaded = NexusForCausalLM.from_pretrained(tmp_path, attention_order=order)
    assert len(loaded.gates()) == (order - 1) * len(model.gates())
    assert_close(loaded(ids).logits, model(ids).logits)
    standard = NexusForCausalLM.from_pretrained(tmp_path, attention_order=1)
    assert not torch.allclose(standard(ids).logits, model(ids).logits, atol=1e-2)


@pytest.mark.parametrize(("field", "value"), [("attention_order", 1), ("inner_window", 4), ("refine_key", False)])
def test_a_config_that_changes_under_a_built_model_is_an_error(field, value):
    model, ids = build(attention_order=2), token_ids()
    setattr(model.config, field, value)
    with pytest.raises(ValueError, match="The config was changed after the model was built"):
        model(ids)


def test_a_model_without_gates_has_none_to_train():
    with pytest.raises(ValueError, match="no gates to train"):
        build(inner_gate=False).freeze_all_but_gates()
