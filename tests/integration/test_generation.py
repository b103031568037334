"""Every way of generating gives the tokens that it gives without a cache."""

import pytest
import torch
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig

from nexus_transformers import NexusConfig, NexusForCausalLM

SHAPE = {
    "attention_order": 2,
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": None,
    "bos_token_id": None,
}
NESTINGS = {
    "order 2": {"attention_order": 2},
    "orders 3, 1": {"attention_order": [3, 1]},
    "only queries": {"attention_order": 2, "refine_key": False},
    "unshared": {"attention_order": 2, "share_projections": False},
    "window": {"attention_order": 2, "sliding_window": 6, "sliding_layers": [1]},
}
each_nesting = pytest.mark.parametrize("nesting", NESTINGS.values(), ids=NESTINGS)


def build(seed=0, **changes) -> NexusForCausalLM:
    torch.manual_seed(seed)
    return NexusForCausalLM(NexusConfig(**SHAPE | changes)).eval()


def prompts() -> dict[str, torch.Tensor]:
    """Three prompts of different lengths, padded on the left; the last repeats itself, for prompt lookup to find."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 96, (3, 12), generator=generator)
    ids[2, 6:] = ids[2, :6]
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[1, :2] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def generate(model, inputs=None, new_tokens=14, **settings) -> torch.Tensor:
    torch.manual_seed(0)
    return model.generate(**(inputs or prompts()), max_new_tokens=new_tokens, **{"do_sample": False, **settings})


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 10, "temperature": 0.8},
    "beams": {"num_beams": 3},
    "several sampled": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@each_nesting
def test_dynamic_and_static_caches(nesting, way):
    model = build(**nesting)
    expected = generate(model, use_cache=False, **way)
    assert len(set(expected.flatten().tolist())) > 10, "not one token over and over, which would hide differences"
    assert torch.equal(generate(model, **way), expected)
    assert torch.equal(generate(model, cache_implementation="static", **way), expected)


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
    one = {"input_ids": prompts()["input_ids"][2:]}
    assert torch.equal(generate(model, one, prompt_lookup_num_tokens=3), generate(model, one, use_cache=False))


@each_nesting
def test_assisted_by_another_model(nesting):
    model = build(**nesting)
    one = {"input_ids": prompts()["input_ids"][2:]}
    expected = generate(model, one, use_cache=False)
    almost_the_same, another = build(**nesting), build(seed=1, attention_order=1)
    with torch.no_grad():
        almost_the_same.lm_head.weight[::3] += 0.05  # agrees often, not always: tokens are accepted and rolled back
    assert torch.equal(generate(model, one, assistant_model=almost_the_same), expected)
    assert torch.equal(generate(model, one, assistant_model=another), expected)


@each_nesting
def test_a_conversation_continues_from_its_cache(nesting):
    model = build(**nesting)
    one = {"input_ids": prompts()["input_ids"][2:]}
    first = generate(model, one, return_dict_in_generate=True)
    longer = {"input_ids": torch.cat((first.sequences, torch.tensor([[3, 1, 4, 1, 5]])), dim=1)}
    continued = generate(model, longer, past_key_values=first.past_key_values)
    assert torch.equal(continued, generate(model, longer, use_cache=False))


@pytest.mark.parametrize("order", [2, 3])
def test_the_quantized_cache_drifts_little(order):
    """8-bit floats keep 3 bits of a mantissa: logits of size 5 move, by less than 0.5 in the mean; most tokens stay."""
    pytest.importorskip("transformers", minversion="5.20", reason="the 8-bit cache that needs no further package")
    model = build(attention_order=order)
    settings = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    quantized = generate(model, new_tokens=1, **settings)
    exact = generate(model, new_tokens=1, use_cache=False, return_dict_in_generate=True, output_logits=True)
    assert (quantized.logits[0] - exact.logits[0]).abs().mean() < 0.5
    assert generate(model, **settings).sequences.shape == (3, 26)


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, 3])
def test_static_generation_compiles_to_one_graph_without_breaks(order):
    model = build(attention_order=order)
    inputs = {"input_ids": prompts()["input_ids"][2:]}
    expected = generate(model, inputs, use_cache=False)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_config = CompileConfig(fullgraph=True, mode="default")
    compile_config._compile_all_devices = True  # else `generate` compiles nothing on a CPU
    actual = generate(model, inputs, cache_implementation="static", compile_config=compile_config)
    assert torch.equal(actual, expected)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@each_nesting
def test_continuous_batching(nesting):
    model = build(**nesting)
    model.set_attn_implementation("paged|sdpa")
    requests = [[int(token) for token in row if token] for row in prompts()["input_ids"]]
    results = model.generate_batch(
        inputs=requests,
        generation_config=GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=64, block_size=32, max_batch_tokens=64),
        progress_bar=False,
    )
    model.set_attn_implementation("sdpa")
    for request, result in zip(requests, results.values(), strict=True):
        expected = generate(model, {"input_ids": torch.tensor([request])}, new_tokens=8, use_cache=False)
        assert result.generated_tokens == expected[0, len(request) :].tolist()
