"""The credits of `nexus inspect`: they add up to the logits, and each is what the logits lose without its message."""

import pytest
import torch

from nexus_transformers import NexusConfig, NexusForCausalLM
from nexus_transformers.inspection.collect import passes_of
from nexus_transformers.inspection.paths import PathFinder

VOCAB_SIZE = 100
SHAPE = {
    "attention_order": 2,
    "num_layers": 2,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB_SIZE,
    "initializer_range": 0.3,  # large enough for attention to be far from uniform
}
VARIANTS = {
    "order 2": {},
    "order 3": {"attention_order": 3},
    "order 3 and 1": {"attention_order": [3, 1]},
    "queries only": {"refine_key": False},
    "keys only": {"refine_query": False},
    "unshared": {"share_projections": False, "attention_order": 3},
    "norms": {"qk_norm": True},
    "norms across heads": {"qk_norm": "across_heads"},
    "no source norm": {"inner_scale": False, "initializer_range": 0.15},
    "partial rotary": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    "window": {"sliding_window": 5, "sliding_layers": [0]},
    "layernorm, parallel": {"norm_type": "layernorm", "parallel_residual": True, "mlp_gated": False},
    "post-norm": {"norm_position": "post"},
}


def finders_of(model, ids):
    """For each nested layer its attention, the input of it, and a `PathFinder`."""
    with torch.no_grad():
        nested = [layer for layer in passes_of(model, ids) if layer.attention.order > 1]
        return [(layer.attention, layer.hidden_states, PathFinder(layer)) for layer in nested]


@pytest.mark.parametrize("variant", VARIANTS)
def test_credits_add_up_to_the_logit_above_the_mean_of_its_row(variant):
    """Without gates and biases all of a refined query or key was gathered, so nothing else is left."""
    model = NexusForCausalLM._from_config(NexusConfig(**SHAPE | VARIANTS[variant]), attn_implementation="eager").eval()
    for parameter in (p for name, p in model.named_parameters() if name.endswith("_norm.weight")):
        torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    ids = torch.randint(VOCAB_SIZE, (1, 11))
    finders = finders_of(model, ids)
    assert finders
    for attention, _, finder in finders:
        window = finder.calls[0].visible.sum(-1).max().item()
        i, j = (index[1:] for index in finder.calls[0].visible.nonzero(as_tuple=True))
        for level in range(1, attention.order):
            for head in range(4):
                # The definition, from the weights alone: logits are their logarithms, up to a constant per row.
                logits = finder.calls[level].weights[head].log().masked_fill(~finder.calls[0].visible, float("nan"))
                wanted = (logits - logits.nanmean(-1, keepdim=True))[i, j]
                for branch in ("query", "key"):
                    credits = finder.refinements[level].credits(branch, head, i, j)
                    if not attention.inner_norm.refine[branch]:
                        assert credits.abs().max() == 0
                        continue
                    torch.testing.assert_close(credits.sum((0, 2)), wanted, atol=2e-4, rtol=1e-3)
                    gatherer = i if branch == "query" else j
                    inner_weights = finder.calls[level - 1].weights[:, gatherer]
                    assert (credits[inner_weights == 0] == 0).all(), "only what was gathered gets credit"
        assert window == (5 if variant == "window" and finder is finders[0][2] else 11)


@pytest.mark.parametrize("branch", ["query", "key"])
@pytest.mark.parametrize("fields", [{}, {"inner_gate": True, "inner_gate_init": 0.4, "attention_bias": True}])
def test_a_credit_is_what_the_logits_lose_without_the_message(fields, branch):
    """Takes one message out of one source, norm held, and projects again with the model's own layers."""
    model = NexusForCausalLM._from_config(NexusConfig(**SHAPE | fields), attn_implementation="eager").eval()
    for parameter in (p for name, p in model.named_parameters() if name.endswith("bias")):
        torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.randint(VOCAB_SIZE, (1, 11))
    attention, hidden_states, finder = finders_of(model, ids)[1]
    refinement = finder.refinements[1]
    head, inner_head, i, j = 3, 2, 9, 6
    gatherer = i if branch == "query" else j
    token = refinement.inner.weights[inner_head, gatherer].argmax().item()
    message = attention.o_proj.weight[:, 32:48] @ refinement.values[inner_head, token]
    message = refinement.inner.weights[inner_head, gatherer, token] * message
    sources = {name: source.clone() for name, source in refinement.sources.items()}
    gate = 1.0 if not fields else 0.4
    assert refinement.gates == pytest.approx({"query": gate, "key": gate})
    sources[branch][gatherer] -= gate * refinement.scale[gatherer] * message
    cos_sin = model.model.rotary_emb(hidden_states[None], torch.arange(11)[None])
    half = cos_sin[1].shape[-1] // 2
    cos = cos_sin[0].unsqueeze(2)
    sin = torch.cat((-cos_sin[1][..., :half], cos_sin[1][..., half:]), -1).unsqueeze(2)
    with torch.no_grad():
        query = attention.query(sources["query"][None], (cos, sin))[0, head]
        key = attention.key(sources["key"][None], (cos, sin))[0, head // 2]
    call, row = finder.calls[1], slice(0, i + 1)
    before = (call.query[head, i] * call.key[head // 2, row]).sum(-1) * call.scaling
    lost = before - (query[i] * key[row]).sum(-1) * call.scaling
    credit = refinement.credits(branch, head, torch.tensor([i]), torch.tensor([j]))[inner_head, 0, token].item()
    if branch == "query":
        assert credit == pytest.approx((lost[j] - lost.mean()).item(), abs=1e-4)
    else:
        # Instead of the message the key gets what the keys of the row got from this inner head on average.
        mean = refinement.even_keys(head // 2)[i, inner_head] @ call.query[head, i] * call.scaling
        weight = refinement.inner.weights[inner_head, j, token].item()
        assert credit == pytest.approx(lost[j].item() - weight * mean.item(), abs=1e-4)
        assert lost[j].abs() > 0.01 and (lost[:j] == 0).all()
