"""Every way of generating gives the tokens that it gives without a cache."""

import pytest
import torch
from arms import ARMS, build, each_arm
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig

NESTINGS = ARMS | {
    "orders 3, 1": {"attention_order": [3, 1]},
    "only queries": {"attention_order": 2, "refine_key": False},
    "one layer windowed": {"attention_order": 2, "sliding_window": 6, "sliding_layers": [1]},
    "inner window": {"attention_order": [3, 2], "inner_window": 5},
    "inner window, separate": {**ARMS["separate QK"], "inner_window": 5},
}
each_nesting = pytest.mark.parametrize("nesting", NESTINGS.values(), ids=NESTINGS)


def prompts() -> dict[str, torch.Tensor]:
    """Three prompts of different lengths, padded on the left; the last repeats itself, for prompt lookup to find."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 64, (3, 12), generator=generator)
    ids[2, 6:] = ids[2, :6]
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[1, :2] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def one_prompt() -> dict[str, torch.Tensor]:
    return {"input_ids": prompts()["input_ids"][2:]}


def generate(model, inputs=None, new_tokens=14, **settings) -> torch.Tensor:
    torch.manual_seed(0)
    return model.generate(**(inputs or prompts()), max_new_tokens=new_tokens, **{"do_sample": False, **settings})


WAYS = {
    "beams": {"num_beams": 3},
    "several sampled": {"do_sample": True, "top_k": 10, "temperature": 0.8, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@each_nesting
def test_dynamic_and_static_caches(nesting, way):
    model = build(**nesting)
    expected = generate(model, use_cache=False, **way)
    assert len(set(expected.flatten().tolist())) > 10, "not one token over and over, which would hide differences"
    assert torch.equal(generate(model, **way), expected)
    assert torch.equal(generate(model, cache_implementation="static", **way), expected)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@each_arm
def test_a_window_decodes_beyond_its_size(arm, cache):
    """Every level is windowed: with the cache cropped to the window, decoding goes on as if nothing were cropped."""
    model = build(**arm, sliding_window=5)
    expected = generate(model, use_cache=False)
    assert torch.equal(generate(model, cache_implementation=cache), expected)
    assert not torch.equal(generate(build(**arm), cache_implementation=cache), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloaded caches need a GPU")
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
@each_nesting
def test_offloaded_caches(nesting, kind):
    model = build(**nesting).cuda()
    inputs = {name: tensor.cuda() for name, tensor in prompts().items()}
    expected = generate(model, inputs, use_cache=False)
    assert torch.equal(generate(model, inputs, cache_implementation=kind), expected)


@each_nesting
def test_prefill_in_chunks(nesting):
    model = build(**nesting)
    one = {"input_ids": prompts()["input_ids"][2:].repeat(1, 2)}
    expected = generate(model, one, use_cache=False)
    assert torch.equal(generate(model, one, prefill_chunk_size=5), expected)


@each_nesting
def test_prompt_lookup(nesting):
    model = build(**nesting)
    one = one_prompt()
    assert torch.equal(generate(model, one, prompt_lookup_num_tokens=3), generate(model, one, use_cache=False))


@each_nesting
def test_assisted_by_another_model(nesting):
    model = build(**nesting)
    one = one_prompt()
    expected = generate(model, one, use_cache=False)
    almost_the_same, another = build(**nesting), build(seed=1, attention_order=1)
    with torch.no_grad():
        almost_the_same.lm_head.weight[::3] += 0.05  # agrees often, not always: tokens are accepted and rolled back
    assert torch.equal(generate(model, one, assistant_model=almost_the_same), expected)
    assert torch.equal(generate(model, one, assistant_model=another), expected)


@each_nesting
def test_a_conversation_continues_from_its_cache(nesting):
    model = build(**nesting)
    one = one_prompt()
    first = generate(model, one, return_dict_in_generate=True)
    ids = torch.cat((first.sequences, torch.tensor([[3, 1, 4, 1, 5]])), dim=1)
    longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    continued = generate(model, longer, past_key_values=first.past_key_values)
    assert torch.equal(continued, generate(model, longer, use_cache=False))


@each_arm
def test_the_quantized_cache_drifts_little(arm):
    """8-bit floats keep 3 bits of a mantissa: logits of size 5 move, by less than 0.5 in the mean; most tokens stay."""
    pytest.importorskip("transformers", minversion="5.20", reason="the 8-bit cache that needs no further package")
    model = build(**arm)
    settings = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    quantized = generate(model, new_tokens=2, **settings)
    exact = generate(model, new_tokens=2, use_cache=False, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(quantized.sequences[:, :13], exact.sequences[:, :13])
    assert 1e-3 < (quantized.logits[1] - exact.logits[1]).abs().mean() < 0.5
    assert generate(model, **settings).sequences.shape == (3, 26)


def compiled(model, backend: str) -> torch.Tensor:
    compile_config = CompileConfig(fullgraph=True, mode=None, backend=backend)
    compile_config._compile_all_devices = True  # else `generate` compiles nothing on a CPU
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    tokens = generate(model, one_prompt(), cache_implementation="static", compile_config=compile_config)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    return tokens


@each_arm
def test_static_generation_is_one_graph_without_breaks(arm):
    model = build(**arm, num_layers=1)
    assert torch.equal(compiled(model, "eager"), generate(model, one_prompt(), use_cache=False))


@pytest.mark.slow
def test_static_generation_compiles_to_machine_code():
    model = build(attention_order=[3, 1])
    assert torch.equal(compiled(model, "inductor"), generate(model, one_prompt(), use_cache=False))


def batched(model, **settings) -> list[list[int]]:
    model.set_attn_implementation("paged|sdpa")
    requests = [[int(token) for token in row if token] for row in prompts()["input_ids"]]
    results = model.generate_batch(
        inputs=requests,
        generation_config=GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=64, block_size=32, max_batch_tokens=64),
        progress_bar=False,
    )
    model.set_attn_implementation("sdpa")
    return [request + result.generated_tokens for request, result in zip(requests, results.values(), strict=True)]


SELF = ARMS["self"]


BATCHED = NESTINGS | {"self": {**SELF, "num_key_value_heads": 4}}


@pytest.mark.parametrize("nesting", BATCHED.values(), ids=BATCHED)
def test_continuous_batching(nesting):
    model = build(**nesting)
    for tokens in batched(model):
        request = {"input_ids": torch.tensor([tokens[:-8]])}
        assert tokens == generate(model, request, new_tokens=8, use_cache=False)[0].tolist()


def test_continuous_batching_is_refused_where_slots_have_different_numbers_of_heads():
    with pytest.raises(ValueError, match=r"as many heads in every slot.*use `generate`"):
        batched(build(**SELF))
    batched(build(**SELF, refine_query=False))  # without queries in the cache


def test_chunked_prefill_of_a_static_cache_allocates_all_slots_alike():
    settings = {"cache_implementation": "static", "prefill_chunk_size": 5}
    model = build(**SELF, num_key_value_heads=4)
    assert torch.equal(generate(model, one_prompt(), **settings), generate(model, one_prompt(), use_cache=False))
    with pytest.raises(ValueError, match=r"allocated for 2 heads, and has 4.*without.*`prefill_chunk_size`"):
        generate(build(**SELF), one_prompt(), **settings)
