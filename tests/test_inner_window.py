"""
A window for the inner levels: sequences much longer than it, in one pass, in blocks and through every cache. (Short
sequences with a window are in tests/test_modeling_nexus.py, generation in tests/integration/.)
"""

import pytest
import torch
from arms import SHAPE, build
from transformers import DynamicCache, StaticCache

import reference
from nexus_transformers import NexusConfig, NexusForCausalLM
from nexus_transformers.inputs_nexus import block_size

LENGTH, WINDOW = 100, 5

NESTINGS = {
    "shared": {"attention_order": 2},
    "orders 3, 2": {"attention_order": [3, 2]},
    "only queries": {"attention_order": 2, "refine_key": False},
    "values too": {"attention_order": 2, "refine_value": True},
    "separate": {"attention_order": 2, "inner_attention": "separate"},
    "self": {"attention_order": 2, "inner_attention": "self"},
}
WINDOWED = {
    "a window of its own": {"attention_order": 2, "sliding_window": 9},
    "one layer windowed": {"attention_order": 3, "sliding_window": 9, "sliding_layers": [1]},
    "a window of its own that blocks fit into": {"attention_order": 2, "sliding_window": 64},
    "a narrower window of its own": {"attention_order": 2, "sliding_window": 4},
}
each_nesting = pytest.mark.parametrize("nesting", NESTINGS.values(), ids=NESTINGS)
each_window = pytest.mark.parametrize("nesting", (NESTINGS | WINDOWED).values(), ids=NESTINGS | WINDOWED)


def padded() -> dict[str, torch.Tensor]:
    """Two sequences, of which the first has padding on the left."""
    ids = torch.randint(1, 64, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def model_of(nesting: dict, backend: str = "sdpa", window: int | None = WINDOW) -> NexusForCausalLM:
    model = build(**nesting, inner_window=window)
    model.set_attn_implementation(backend)
    return model


def logits(model: NexusForCausalLM, **changes) -> torch.Tensor:
    inputs = padded()
    return model(**inputs | changes, use_cache=False).logits[inputs["attention_mask"].bool()]


def assert_close(actual: torch.Tensor, expected: torch.Tensor):
    """Logits are of size 10; a window one token longer changes them by more than 0.1 (see the control below)."""
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=0, check_dtype=False)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@each_nesting
def test_a_long_sequence_is_that_of_the_definition(nesting, backend):
    model, inputs = model_of(nesting, backend), padded()
    expected = reference.logits(model.state_dict(), model.config, *inputs.values())[inputs["attention_mask"].bool()]
    assert_close(logits(model), expected)
    assert (logits(model_of(nesting, backend, WINDOW + 1)) - expected).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("length", [31, 32, 33, 63, 64, 65, LENGTH])
@pytest.mark.parametrize("window", [2, 32, 40, 99])
def test_blocks_of_every_fit(window, length):
    """Blocks that the sequence fills and does not fill, windows as long as a block and longer."""
    model, inputs = model_of({"attention_order": 2}, window=window), padded()
    inputs = {name: tensor[:, -length:] for name, tensor in inputs.items()}
    expected = reference.logits(model.state_dict(), model.config, *inputs.values())[inputs["attention_mask"].bool()]
    assert_close(model(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()], expected)


@each_nesting
def test_the_gradient_through_blocks_is_that_of_one_attention(nesting):
    gradients = []
    for backend in ("eager", "sdpa"):
        model = model_of(nesting, backend)
        logits(model).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient.abs().max() > 1e-6 for name, gradient in gradients[0].items())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)


CHUNKS = {"token by token": [2] + [1] * 98, "chunks": [3, 1, 9, 1, 1, 41, 2, 1, 41], "prompt first": [50] + [1] * 50}
CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "bare dynamic": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config, max_cache_len=120),
}


@torch.no_grad()
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("kind", CACHES)
@each_window
def test_cached_is_uncached_far_beyond_the_window(nesting, kind, chunks):
    model, inputs = model_of(nesting), padded()
    cache, outputs, end = CACHES[kind](model.config), [], 0
    for size in chunks:
        start, end = end, end + size
        ids, positions = (inputs[name][:, start:end] for name in ("input_ids", "position_ids"))
        mask = inputs["attention_mask"][:, :end]
        outputs.append(model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits)
    assert cache.get_seq_length() == end == LENGTH
    assert_close(torch.cat(outputs, dim=1)[inputs["attention_mask"].bool()], logits(model))


@torch.no_grad()
@pytest.mark.parametrize(
    "nesting, slots",  # tokens whose keys are kept, and values, of each slot of the first layer
    [
        (NESTINGS["shared"], [(WINDOW - 1, WINDOW - 1), (LENGTH, LENGTH)]),
        (NESTINGS["orders 3, 2"], [(WINDOW - 1, WINDOW - 1), (WINDOW - 1, 0), (LENGTH, LENGTH)]),
        (NESTINGS["separate"], [(WINDOW - 1, WINDOW - 1)] * 2 + [(LENGTH, LENGTH)]),
        (WINDOWED["a window of its own"], [(8, 8), (8, 0)]),
    ],
    ids=str,
)
def test_inner_slots_keep_the_window_and_no_more(nesting, slots):
    model = model_of(nesting)
    cache = model(padded()["input_ids"]).past_key_values
    kept = [(layer.keys.shape[2], layer.values.shape[2] * bool(layer.values.numel())) for layer in cache.layers]
    assert kept[: len(slots)] == slots


@torch.no_grad()
def test_speculative_decoding_takes_tokens_back_beyond_the_window():
    model, ids = model_of({"attention_order": 2}), padded()["input_ids"][1:]
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    model(torch.cat((ids[:, :60], ids[:, :3]), dim=1), past_key_values=cache)
    cache.crop(-3)
    actual = model(ids[:, 60:], past_key_values=cache).logits
    assert_close(actual, model(ids).logits[:, 60:])


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("additive", [False, True])
def test_a_ready_mask_is_cut_to_the_window_at_inner_levels(additive, backend):
    model, inputs = model_of({"attention_order": 2}, backend), padded()
    mask = inputs["attention_mask"].bool()[:, None, None, :] & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    if additive or backend == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert_close(logits(model, attention_mask=mask), logits(model))


@torch.no_grad()
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("start", [2, 60])
def test_a_ready_mask_is_cut_to_what_the_slots_of_inner_levels_keep(kind, start):
    model, ids = model_of({"attention_order": 2}), padded()["input_ids"][1:]
    cache, total = CACHES[kind](model.config), 120 if kind == "static" else LENGTH  # a static slot returns all its room
    model(ids[:, :start], past_key_values=cache)
    mask = torch.ones(LENGTH, total, dtype=torch.bool).tril()[None, None, start:]
    assert_close(model(ids[:, start:], attention_mask=mask, past_key_values=cache).logits, model(ids).logits[:, start:])


def test_a_ready_block_mask_is_refused():
    from torch.nn.attention.flex_attention import create_block_mask

    model, ids = model_of({"attention_order": 2}, "flex_attention"), padded()["input_ids"]
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, LENGTH, LENGTH, device="cpu")
    with pytest.raises(ValueError, match="ready BlockMask"):
        model(ids, attention_mask=mask, use_cache=False)


@torch.no_grad()
def test_packed_sequences_do_not_see_each_other():
    model, ids = model_of({"attention_order": 2}), padded()["input_ids"][1:]
    positions = torch.cat((torch.arange(57), torch.arange(LENGTH - 57)))[None]
    packed = model(ids, position_ids=positions, use_cache=False).logits
    assert_close(packed[:, :57], model(ids[:, :57]).logits)
    assert_close(packed[:, 57:], model(ids[:, 57:]).logits)
    assert (model(ids).logits[:, 57:] - packed[:, 57:]).abs().max() > 0.1


@torch.no_grad()
def test_what_is_before_the_window_does_not_reach_the_inner_levels():
    """One layer, in which only queries are refined, and only inner values differ: token 0 reaches w - 1 later ones."""
    model = build(attention_order=2, num_layers=1, inner_window=WINDOW, refine_key=False)
    maps = []
    model.set_attn_implementation("eager")
    for level_map in model(padded()["input_ids"][1:], output_attentions=True).attentions:
        maps.append((level_map > 0).any(dim=(0, 1)).tril(-WINDOW).any().item())
    assert maps == [False, True], "the inner map is a band, the outer one is not"


def test_the_window_can_be_set_and_changed_at_load(tmp_path):
    plain = build(attention_order=2)
    plain.save_pretrained(tmp_path)
    expected = {window: logits(model_of({"attention_order": 2}, window=window)) for window in (4, 7)}
    for window in (4, 7):
        loaded = NexusForCausalLM.from_pretrained(tmp_path, inner_window=window)
        assert loaded.config.sliding_window == window, "what caches read"
        assert_close(logits(loaded), expected[window])
        loaded.save_pretrained(tmp_path)
    back = NexusForCausalLM.from_pretrained(tmp_path, inner_window=None)
    assert_close(logits(back), logits(plain))


def test_a_window_that_is_set_later_is_settled_when_the_config_is_checked(tmp_path):
    config = NexusConfig(**SHAPE, attention_order=2)
    for window in (4, 7):
        config.inner_window = window
        config.save_pretrained(tmp_path)
        assert NexusConfig.from_pretrained(tmp_path).sliding_window == window


@pytest.mark.parametrize("window", [WINDOW, WINDOW + 1])
def test_a_window_of_all_layers_given_at_load_holds_even_if_it_is_as_wide(window, tmp_path):
    """`inner_window` alone implies a `sliding_window` of no layer, which is not what the user gives here."""
    build(attention_order=2, inner_window=WINDOW).save_pretrained(tmp_path)
    config = NexusForCausalLM.from_pretrained(tmp_path, sliding_window=window).config
    assert (config.sliding_window, config.windowed_layers) == (window, set(range(config.num_layers)))
    some = NexusForCausalLM.from_pretrained(tmp_path, sliding_window=window, sliding_layers=[1]).config
    assert (some.sliding_window, some.windowed_layers) == (window, {1})


def test_a_window_adds_no_windowed_layer():
    config = NexusConfig(**SHAPE, attention_order=[2, 1], inner_window=WINDOW)
    assert config.layer_types == ["sliding_attention", "full_attention", "full_attention"]
    assert [[call.window for call in calls] for calls in config.attention_calls()] == [[WINDOW, None], [None]]


def test_engines_with_one_window_refuse_two():
    from transformers import AttentionInterface

    AttentionInterface.register("vllm", lambda *_, **__: None)
    config = build(**WINDOWED["a window of its own"], inner_window=WINDOW).config
    with pytest.raises(
        ValueError, match="knows one window, and this model has two, sliding_window=9 and inner_window=5"
    ):
        NexusForCausalLM._from_config(config, attn_implementation="vllm")
    with pytest.raises(ValueError, match=r"knows one window.*use `generate`"):
        NexusForCausalLM(config).init_continuous_batching()


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 2])
def test_a_step_of_one_token_is_masked_only_where_its_slot_has_what_it_may_not_see(padding):
    model, ids = build(attention_order=2, inner_window=WINDOW), padded()["input_ids"][1:, :8]
    mask = torch.ones_like(ids)
    mask[:, 8 - 1 - padding : 8 - 1] = 0  # within the window of the last token
    cache, seen = DynamicCache(config=model.config), []
    model(ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache)
    model.model.layers[0].self_attn.inner_1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[3]))
    model(ids[:, -1:], attention_mask=mask, past_key_values=cache)
    (whole, in_blocks) = seen[0]
    assert in_blocks is None
    assert (
        whole is None
        if padding == 0
        else whole.tolist() == [[[[True] * (WINDOW - 1 - padding) + [False] * padding + [True]]]]
    )


def test_blocks_are_as_long_as_the_window_and_not_shorter_than_32():
    assert [block_size(window) for window in (1, 32, 64)] == [32, 32, 64]
