"""The credits of `nexus inspect`: they add up to the logits, and each is what the logits lose without its message."""

import pytest
import torch

from nexus_transformers import NexusConfig, NexusForCausalLM, NexusForMaskedLM
from nexus_transformers.inspection.collect import LayerPass, passes_of
from nexus_transformers.inspection.credits import Refinement
from nexus_transformers.inspection.paths import PathFinder

VOCAB_SIZE, TOKENS = 100, 11
SHAPE = {
    "attention_order": 2,
    "num_layers": 2,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": VOCAB_SIZE,
    "initializer_range": 0.3,  # large enough for attention to be far from uniform
}
W_O = {"inner_output_projection": True, "head_dim": 16}  # which is not the width of the model
SEPARATE = {"inner_attention": "separate"}
SELF = {"inner_attention": "self", "head_dim": 16}
VARIANTS = {
    "order 2": {},
    "order 3": {"attention_order": 3},
    "order 3 and 1": {"attention_order": [3, 1]},
    "queries only": {"refine_key": False},
    "keys only": {"refine_query": False},
    "values too": {"refine_value": True},
    "W_O": {"attention_order": 3} | W_O,
    "norms": {"qk_norm": True},
    "norms across heads": {"qk_norm": "across_heads"},
    "no inner scale": {"inner_scale": False, "initializer_range": 0.15},
    "partial rotary": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    "window": {"sliding_window": 5, "sliding_layers": [0]},
    "layernorm, parallel": {"norm_type": "layernorm", "parallel_residual": True, "mlp_gated": False},
    "post-norm": {"norm_position": "post"},
    "norms on both sides, 1 + w": {"norm_position": "both", "norm_type": "zero_centered_rmsnorm", "qk_norm": True},
    "a layer without positions": {"layers_without_rope": [0], "attention_multiplier": 0.2},
    "separate": SEPARATE,
    "separate, keys only": SEPARATE | {"refine_query": False},
    "separate, values too, W_O": SEPARATE | W_O | {"refine_value": True},
    "separate, norms, window": SEPARATE | {"qk_norm": True, "sliding_window": 5, "sliding_layers": [0]},
    "self": SELF,
    "self, order 3": SELF | {"attention_order": 3},
    "self, order 3, queries only": SELF | {"attention_order": 3, "refine_key": False},
    "self, no inner scale": SELF | {"inner_scale": False, "initializer_range": 0.15},
    "encoder": {"is_causal": False, "attention_order": 3},
    "encoder, window": {"is_causal": False, "sliding_window": 2, "sliding_layers": [0]},  # two on each side, and itself
    "encoder, separate": SEPARATE | {"is_causal": False},
    "encoder, self": SELF | {"is_causal": False},
    "self, norms, window": SELF | {"qk_norm": True, "sliding_window": 5, "sliding_layers": [0]},
}


def nested_layers(fields: dict) -> list[tuple[LayerPass, PathFinder]]:
    """Of a random model, run once."""
    config = NexusConfig(**SHAPE | fields)
    model_class = NexusForCausalLM if config.is_causal else NexusForMaskedLM
    model = model_class._from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if name.endswith("_norm.weight"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        passes = passes_of(model, torch.randint(VOCAB_SIZE, (1, TOKENS)))
        return [(layer, PathFinder(layer)) for layer in passes if layer.attention.order > 1]


def expected_refinements(attention, fields: dict) -> int:
    """Of queries and of keys, of every call that is not of level 1."""
    branches = fields.get("refine_query", True) + fields.get("refine_key", True)
    further = attention.order - 2
    return branches * (1 + further * (2 if fields.get("inner_attention") == "self" else 1))


def credits_and_logits(refinement: Refinement, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Of all pairs that a window lets see: the sum of all credits, and the logit above the mean of its row, which follows
    from the attention map alone: logits are its logarithms, up to a constant per row.
    """
    call = refinement.call
    i, j = call.visible.nonzero(as_tuple=True)
    logits = call.weights[head].log().masked_fill(~call.visible, float("nan"))
    credits = refinement.credits(head, i, j)
    heads = refinement.inner_heads(refinement.part(head))
    gathered_from = refinement.inner.weights[heads][:, i if refinement.branch == "query" else j]
    assert credits.shape == gathered_from.shape
    assert (credits[gathered_from == 0] == 0).all(), "only what was gathered gets credit"
    return credits.sum((0, 2)), (logits - logits.nanmean(-1, keepdim=True))[i, j]


@pytest.mark.parametrize("variant", VARIANTS)
def test_credits_add_up_to_the_logit_above_the_mean_of_its_row(variant):
    """Without gates and biases all of a refined query or key was gathered, so nothing else is left."""
    fields = VARIANTS[variant]
    layers = nested_layers(fields)
    assert layers
    for number, (layer, finder) in enumerate(layers):
        for call in layer.calls:  # of an encoder, later ones too
            assert torch.equal(call.visible, call.weights.amax(0) > 0)
        window = layer.calls[0].visible.sum(-1).max().item()
        assert window == (5 if "window" in variant and number == 0 else TOKENS)
        assert len(finder.refinements) == expected_refinements(layer.attention, fields)
        for refinement in finder.refinements.values():
            for head in range(len(refinement.call.query)):
                torch.testing.assert_close(*credits_and_logits(refinement, head), atol=2e-4, rtol=1e-3)
            refinement.values = refinement.values.roll(1, dims=1)  # messages of the wrong tokens
            credits, logits = credits_and_logits(refinement, head)
            assert (credits - logits).abs().max() > 0.1, "the control"


GATED = {"inner_gate": True, "inner_gate_init": 0.4}
REMOVED = {
    "shared": {},
    "shared, W_O, gates, biases": W_O | GATED | {"attention_bias": True},
    "separate": SEPARATE,
    "separate, W_O, gates, biases": SEPARATE | W_O | GATED | {"attention_bias": True},
    "self, gates": SELF | GATED,
}


@pytest.mark.parametrize("branch", ["query", "key"])
@pytest.mark.parametrize("variant", REMOVED)
def test_a_credit_is_what_the_logits_lose_without_the_message(variant, branch):
    """Takes one message out of what an inner call gathered, norm held, and goes on with the model's own layers."""
    fields = REMOVED[variant]
    layer, finder = nested_layers(fields)[1]
    call = layer.calls[-1]
    refinement = finder.refinements[call, branch]
    inner, gate = refinement.inner, 0.4 if "gates" in variant else 1.0
    assert refinement.gate == pytest.approx(gate)
    head, i, j = 3, 9, 6
    gatherer = i if branch == "query" else j
    inner_head = refinement.part(head) if "self" in variant else 2
    weights = inner.weights[inner_head, gatherer]
    token = weights.argmax().item()

    size = layer.attention.head_dim
    message = torch.zeros_like(inner.output)
    message[gatherer, inner_head * size : (inner_head + 1) * size] = (
        weights[token] * inner.value[inner.group(inner_head), token]
    )
    with torch.no_grad():
        query, key = project_without(layer, refinement, message, head)
    row = slice(0, i + 1)
    before = (call.query[head, i] * call.key[head // 2, row]).sum(-1) * call.scaling
    lost = before - (query[i] * key[row]).sum(-1) * call.scaling
    own = 0 if "self" in variant else inner_head  # in what `credits` and `even_keys` return
    credits = refinement.credits(head, torch.full((i + 1,), i), torch.arange(i + 1))[own, :, token]
    if branch == "query":
        torch.testing.assert_close(credits, lost - lost.mean(), atol=1e-4, rtol=0)
        assert credits.abs().max() > 0.01
    else:
        # Instead of the message the key gets what the keys of the row got from this inner head on average.
        mean = refinement.even_keys(head // 2)[i, own] @ call.query[head, i] * call.scaling
        assert credits[j].item() == pytest.approx(lost[j].item() - weights[token].item() * mean.item(), abs=1e-4)
        assert lost[j].abs() > 0.01 and lost[:j].abs().max() < 1e-5


def project_without(layer: LayerPass, refinement: Refinement, message: torch.Tensor, head: int):
    """The queries and keys of a head, (T, d) each, as they are without a message in the output of the inner call."""
    attention, branch, gate = layer.attention, refinement.branch, refinement.gate
    query, key = refinement.call.query.clone(), refinement.call.key.clone()
    if refinement.inner.branch is not None and not hasattr(attention, f"inner_{branch}"):  # "self"
        part = refinement.part(head)
        unrefined = refinement.inner.value[part]
        mixed, size = refinement.inner.output, attention.head_dim
        mixed, message = (each[:, part * size : (part + 1) * size] for each in (mixed, message))
        scale = unrefined.square().mean(-1, keepdim=True).sqrt() / mixed.square().mean(-1, keepdim=True).sqrt()
        changed = torch.lerp(unrefined, scale * (mixed - message), gate)
        (query if branch == "query" else key)[part] = changed
    else:
        owner = getattr(attention, f"inner_{branch}", attention)
        mixed = owner.inner_output(refinement.inner.output)
        x = layer.hidden_states
        scale = x.square().mean(-1, keepdim=True).sqrt() / mixed.square().mean(-1, keepdim=True).sqrt()
        source = torch.lerp(x, scale * owner.inner_output(refinement.inner.output - message), gate)
        project = attention.query if branch == "query" else attention.key
        (query if branch == "query" else key)[:] = project(source[None], layer.position_embeddings)[0]
    return query[head], key[head // 2]
