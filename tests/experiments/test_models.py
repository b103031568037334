"""The rivals are what they are called, and cost what is said."""

import pytest
import torch

from experiments.models import VARIANTS, build, config, optimizer, parameters, training_flops

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 61}


def logits(model):
    return model(input_ids=torch.arange(12)[None], use_cache=False).logits


def test_all_variants_have_the_same_parameters_but_those_that_say_so():
    counts = {name: parameters(build(name, 2, **SMALL)) for name in VARIANTS}
    standard = counts.pop("standard")
    assert counts.pop("order 2, unshared") == standard + 2 * 4 * 32 * 32
    assert counts.pop("order 2, gates from 0") == standard + 4
    assert set(counts.values()) == {standard}


def test_looped_is_each_layer_twice():
    looped, deep = build("looped", 2, **SMALL), build("standard", 4, **SMALL)
    deep.load_state_dict(looped.state_dict())  # which lists a layer under both its numbers
    assert torch.equal(logits(looped), logits(deep))
    assert torch.equal(deep.model.layers[0].mlp.up_proj.weight, deep.model.layers[1].mlp.up_proj.weight)
    assert not torch.equal(logits(looped), logits(build("standard", 2, **SMALL)))


def test_inside_heads_is_softmax_of_q_with_q_times_q():
    """By the formula; standard attention would be another function."""
    model = build("inside heads", 1, **SMALL | {"num_attention_heads": 4})
    own, attention = model.model.layers[0].self_attn, model.model.layers[0].self_attn.attention
    hidden = torch.randn(1, 5, 32)
    positions = torch.arange(5.0)[:, None] * 10000.0 ** (-torch.arange(4) / 4)  # (T, d / 2)
    positions = torch.cat((positions, positions), -1)

    def rotated(heads):
        halves = torch.cat((-heads[..., 4:], heads[..., :4]), -1)
        return heads * positions.cos() + halves * positions.sin()

    def attended(query, key, value):
        scores = rotated(query) @ rotated(key).transpose(-1, -2) / 8**0.5
        return scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1) @ value

    def refined(heads):
        mixed = attended(heads, heads, heads)
        return mixed * ((heads.pow(2).mean(-1, True) + 1e-6) / (mixed.pow(2).mean(-1, True) + 1e-6)).sqrt()

    query, key, value = (
        getattr(attention, name)(hidden).view(1, 5, 4, 8).transpose(1, 2) for name in ("q_proj", "k_proj", "v_proj")
    )
    outputs = {
        name: attention.o_proj(attended(q, k, value).transpose(1, 2).flatten(2))
        for name, q, k in (("nested", refined(query), refined(key)), ("standard", query, key))
    }
    sin = positions.sin()
    sin = torch.cat((-sin[:, :4], sin[:, 4:]), -1)
    given = own(hidden, (positions.cos()[None, :, None], sin[None, :, None]))
    torch.testing.assert_close(given, outputs["nested"], rtol=1e-4, atol=1e-6)
    assert (given - outputs["standard"]).abs().max() > 1e-3 * outputs["standard"].abs().max()


def test_orders_per_layer():
    assert config("order 3, first layer", 3, **SMALL).layer_orders == [3, 1, 1]
    assert config([1, 2], 3, **SMALL).layer_orders == [1, 2, 1]
    assert config("order 2", 3, **SMALL).layer_orders == [2, 2, 2]


def test_flops_of_rivals():
    def of(variant, layers):
        return training_flops(variant, layers, 2, 16, **SMALL)

    assert of("looped", 2) == of("standard", 4)
    assert of("inside heads", 2) - of("standard", 2) == 2 * 7 * 2 * 2 * (16 * 17 // 2) * 32 * 2  # two more attentions
    assert of("standard", 2) < of("order 2, first layer", 2) < of("order 2, queries only", 2) < of("order 2", 2)
    assert of("order 2", 2) < of("order 3", 2)
    assert of([2, 1], 2) == of("order 2, first layer", 2)


def test_norms_and_gates_are_not_decayed():
    model = build("order 2, gates from 0", 2, **SMALL)
    decayed, others = optimizer(model, 1e-3, 0.1).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {id(gate) for gate in model.gates().values()} < {id(each) for each in others["params"]}
    assert sum(each.numel() for group in (decayed, others) for each in group["params"]) == parameters(model)


def test_an_unknown_variant_is_an_error():
    with pytest.raises(KeyError, match="order 7"):
        build("order 7", 1, **SMALL)
