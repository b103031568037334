"""
The negative controls: with each of them, the comparison has to see a difference. Copied beside isolated_check.py to an
empty folder, so it imports nothing of our package.
"""

from collections.abc import Callable

import torch


def from_the_middle(config) -> list[int]:
    """All layers, that in the middle first: it may be one that does nothing, as inserted layers do at first."""
    number = getattr(config, "num_layers", config.num_hidden_layers)  # of Nexus, of others
    return sorted(range(number), key=lambda layer: abs(layer - number // 2))


@torch.no_grad()
def controls(model, difference: Callable[[], float], enough: float) -> dict[str, float]:
    """What was changed -> the difference that it made. Others are tried until one makes enough of a difference."""
    made = {}
    for kind in (opened_gates, swapped_heads):
        tried = {}
        for what, undo in kind(model):
            tried[what] = difference()
            undo()
            if tried[what] > enough:
                break
        if tried:
            best = max(tried, key=tried.get)
            made[best] = tried[best]
    return made


def opened_gates(model):
    """Per layer the last level's first: those below it have no effect while it is closed."""
    gates = model.gates()
    for layer in from_the_middle(model.config):
        for name in reversed([name for name in gates if f".layers.{layer}." in name]):
            gates[name].fill_(0.5)
            yield f"{name} set to 0.5", lambda gate=gates[name]: gate.zero_()


def swapped_heads(model):
    """The weights of two query heads, of different key/value groups if there are several."""
    config = model.config
    one, other = 0, config.num_attention_heads - 1
    for layer in from_the_middle(config) if one != other else []:
        weight = model.get_parameter(f"model.layers.{layer}.self_attn.q_proj.weight")
        if weight.is_meta:  # it is on the disk
            continue
        heads = weight.view(config.num_attention_heads, config.head_dim, -1)

        def swap(heads=heads) -> None:
            heads[[one, other]] = heads[[other, one]]

        swap()
        yield f"query heads {one} and {other} of layer {layer} swapped", swap
