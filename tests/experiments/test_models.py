"""The rivals are what they are called, and cost what is said."""

import pytest
import torch

from experiments.language import with_w_o
from experiments.models import VARIANTS, build, config, optimizer, parameters, training_flops
from nexus_transformers import NexusForCausalLM

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 61}


def logits(model):
    return model(input_ids=torch.arange(12)[None], use_cache=False).logits


def test_all_variants_have_the_same_parameters_but_for_gates_and_separate_weights():
    counts = {name: parameters(build(name, 2, **SMALL)) for name in VARIANTS}
    standard = counts.pop("standard")
    assert counts.pop("order 2, gates from 0") == standard + 4
    assert counts.pop("separate") == standard + 2 * 2 * 3 * 32**2  # W_Q, W_K and W_V, of queries and of keys
    assert set(counts.values()) == {standard}


def test_looped_is_each_layer_twice():
    looped, deep = build("looped", 2, **SMALL), build("standard", 4, **SMALL)
    deep.load_state_dict(looped.state_dict())  # which lists a layer under both its numbers
    assert torch.equal(logits(looped), logits(deep))
    assert torch.equal(deep.model.layers[0].mlp.up_proj.weight, deep.model.layers[1].mlp.up_proj.weight)
    assert not torch.equal(logits(looped), logits(build("standard", 2, **SMALL)))


def test_with_w_o_is_another_function_and_costs_more():
    """The committed runs of language and retrofit have it; of the others, rows that say so."""
    assert {name for name in VARIANTS if config(name, 2, **SMALL).inner_output_projection} == {"order 2, with W_O"}
    eq12, with_one = build("order 2", 2, **SMALL), build("order 2, with W_O", 2, **SMALL)
    eq12.load_state_dict(with_one.state_dict())
    assert not torch.equal(logits(eq12), logits(with_one))
    assert training_flops("order 2", 2, 2, 16, **SMALL) < training_flops("order 2, with W_O", 2, 2, 16, **SMALL)


def test_all_but_attention_inside_heads_can_have_w_o():
    for variant in (*VARIANTS, [2, 1]):
        fields = with_w_o(variant)
        assert config(variant, 2, **SMALL, **fields).inner_output_projection == (variant != "inside heads")


def test_inside_heads_is_self_attention_that_rotates_at_every_level():
    """Without rotation it is the model's `inner_attention="self"`, and with rotation it is not."""
    own, plain = build("inside heads", 2, **SMALL), NexusForCausalLM(config("inside heads", 2, **SMALL))
    plain.load_state_dict(own.state_dict())
    assert (logits(own) - logits(plain)).abs().max() > 1e-3
    for model in (own, plain):
        model.model.rotary_emb.inv_freq.zero_()
    torch.testing.assert_close(logits(own), logits(plain))


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
