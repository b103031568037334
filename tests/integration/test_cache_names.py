"""
Transformers 5.24 renamed the cache from `past_key_values` to `cache`. Both names work with every supported release, and
what `forward` does not know is refused where swallowing it could change the result.
"""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from nexus_transformers import (
    NexusConfig,
    NexusForCausalLM,
    NexusForSequenceClassification,
    NexusForTokenClassification,
    NexusModel,
    configuration_nexus,
)

NAMES = ["cache", "past_key_values"]
CONFIG = {
    "attention_order": [3, 1, 2],
    "inner_gate": True,
    "inner_gate_init": 0.5,  # open: what a level does is seen
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "bare dynamic": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config=config, max_cache_len=32),
    "sliding": lambda config: DynamicCache(config=config),
}
ids = torch.randint(1, 61, (2, 16), generator=torch.Generator().manual_seed(0))


def build(model_class=NexusForCausalLM, **fields):
    torch.manual_seed(0)
    return model_class(NexusConfig(**CONFIG | fields)).eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", CACHES)
@torch.no_grad()
def test_a_loop_written_by_hand(kind, name):
    """A prefill in two chunks, then token by token, the cache passed on by either name."""
    model = build(sliding_window=5 if kind == "sliding" else None)
    cache = CACHES[kind](model.config)
    chunks = [ids[:, :4], ids[:, 4:11], *ids[:, 11:].split(1, dim=1)]
    logits = torch.cat([model(chunk, **{name: cache}).logits for chunk in chunks], dim=1)
    torch.testing.assert_close(logits, model(ids, use_cache=False).logits, atol=1e-5, rtol=0)
    lost = torch.cat([model(chunk).logits for chunk in chunks], dim=1)  # control: a cache that is not passed on
    assert (lost - logits).abs().max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_that_is_kept_across_turns(name):
    model = build()
    settings = {"max_new_tokens": 6, "do_sample": False}
    cache = DynamicCache(config=model.config)
    first = model.generate(ids, **{name: cache}, **settings)
    assert cache.get_seq_length() == first.shape[1] - 1
    longer = torch.cat((first, ids[:, :3]), dim=1)
    continued = model.generate(longer, **{name: cache}, **settings)
    assert torch.equal(continued, model.generate(longer, use_cache=False, **settings))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_class", [NexusModel, NexusForSequenceClassification, NexusForTokenClassification])
@torch.no_grad()
def test_the_other_models_take_both_names(model_class, name):
    model = build(model_class, num_labels=3)
    cache = DynamicCache(config=model.config)
    model(ids[:, :10], **{name: cache})
    assert cache.get_seq_length() == 10
    rest, whole = model(ids[:, 10:], **{name: cache})[0], model(ids)[0]
    where = slice(None) if whole.dim() == 2 else (slice(None), -1)  # one result per sequence, or per token
    torch.testing.assert_close(rest[where], whole[where], atol=1e-5, rtol=0)


def test_a_cache_under_both_names_at_once_is_refused():
    model, cache = build(), DynamicCache()
    with pytest.raises(ValueError, match="Pass the cache once"):
        model(ids, cache=cache, past_key_values=cache)
    model(ids, cache=cache, past_key_values=None)  # libraries pass None for what they do not use


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "cache_params": DynamicCache(),  # a further name of the cache
        "next_cache": [torch.ones(2)],
        "head_mask": torch.ones(4),
        "encoder_hidden_states": torch.ones(2, 3, 32),
        "label": ids,
        "states": {"key": (torch.ones(1),)},
    }.items(),
)
def test_an_unknown_argument_that_holds_tensors_or_a_cache_is_refused(name, value):
    with pytest.raises(TypeError, match=rf"'{name}'.*5\.16\.1 to 5\.\d+ \(installed: 5"):
        build()(ids, **{name: value})


def test_what_has_no_meaning_to_a_decoder_is_ignored_as_llama_ignores_it():
    model = build()
    tokenized = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    assert torch.equal(model(**tokenized, note="of the user's").logits, model(ids).logits)


def test_a_tuple_of_keys_and_values_is_refused():
    with pytest.raises(TypeError, match="`DynamicCache`"):
        build()(ids, past_key_values=((torch.ones(1), torch.ones(1)),))


def test_a_newer_release_is_warned_about_once(monkeypatch):
    """In one sentence that says what was tested and what to do, and not on a release that was tested."""
    warned = []
    monkeypatch.setattr(configuration_nexus.logger, "warning_once", warned.append)
    build()
    assert not warned
    monkeypatch.setattr(configuration_nexus.transformers, "__version__", "5.99.0.dev0")
    build()
    (message,) = warned
    assert "5.99.0.dev0 is installed" in message and "pip install 'transformers<" in message


def test_generation_warns_of_nothing(recwarn):
    """The old name of the cache is deprecated; whoever calls `generate` has not used it."""
    build().generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert not [str(each.message) for each in recwarn if "past_key_values" in str(each.message)]


def test_double_precision():
    model = build().double()
    cache = DynamicCache(config=model.config)
    logits = torch.cat([model(part, cache=cache).logits for part in ids.split(4, dim=1)], dim=1)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-6, rtol=0)  # norms are float32, as in Llama
    torch.testing.assert_close(model(ids).logits.float(), build()(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_removed_layers(kind):
    """`layers[:k]`, as people cut Llama: the model of the first k layers. Without the first, one sentence."""
    model = build()
    smaller = build(num_layers=2, attention_order=[3, 1])
    smaller.load_state_dict(model.state_dict(), strict=False)
    model.model.layers = model.model.layers[:2]
    assert torch.equal(model(ids).logits, smaller(ids).logits)
    settings = {"max_new_tokens": 5, "do_sample": False}
    expected = smaller.generate(ids, use_cache=False, **settings)
    assert torch.equal(model.generate(ids, cache_implementation=kind, **settings), expected)
    model.model.layers = model.model.layers[1:]
    with pytest.raises(ValueError, match="first layer"):
        model(ids)


def test_early_exit_is_refused_with_its_reason():
    with pytest.raises(ValueError, match="assistant_early_exit"):
        build().generate(ids[:1], assistant_early_exit=1, max_new_tokens=4)
