"""One forward pass, and of every layer what the page shows."""

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import nn

from ..attention_nexus import NexusAttention
from ..configuration_nexus import BRANCHES, AttentionCall, NexusConfig
from ..errors import InspectionError
from ..modeling_nexus import NexusPreTrainedModel
from .credits import Call
from .paths import Path, PathFinder

STEPS = 1000  # weights are kept to three decimals, which is what the page prints; those below 0.01, see `kept`
MAX_CELLS = 32_000_000  # of all maps together; the browser holds two bytes of each


@dataclass
class Maps:
    """
    The attention maps of one call, see `Call` for `level` and `branch`.

    cells: (heads, T (T + 1) / 2) uint16, the weights as `kept`: rows 0, 1, ... up to the diagonal. Of an encoder, whose
        tokens look at later ones too, (heads, T * T): whole rows.
    """

    level: int
    branch: str | None
    cells: np.ndarray
    causal: bool = True

    def weights(self, head: int, heads: int) -> np.ndarray:
        """(T, T), of one of the layer's `heads` query heads. In "self" several of them share a head of the keys."""
        packed = self.cells[head * len(self.cells) // heads]
        if not self.causal:
            return packed.reshape(int(len(packed) ** 0.5), -1) / np.float32(STEPS)
        size = int((2 * len(packed)) ** 0.5)
        weights = np.zeros((size, size), np.float32)
        weights[np.tril_indices(size)] = packed / np.float32(STEPS)
        return weights


@dataclass
class LayerView:
    """
    Attributes:
        maps: first where heads would look if nothing were refined, then the inner levels, at the end the last level.
        change: per head, the share of its attention that the last of `maps` puts elsewhere than the first, mean over
            rows.
        paths: per head; empty at order 1, and where gates are closed.
    """

    maps: list[Maps]
    change: list[float]
    paths: list[list[Path]]

    @property
    def order(self) -> int:
        return self.maps[-1].level


@dataclass
class LayerPass:
    """What one layer did in a forward pass. hidden_states: its attention's input X, (T, D). calls: as `maps` above."""

    attention: NexusAttention
    hidden_states: torch.Tensor
    position_embeddings: tuple[torch.Tensor, torch.Tensor]
    mask: torch.Tensor
    calls: list[Call] = field(default_factory=list)


def collect(model: NexusPreTrainedModel, ids: torch.Tensor) -> list[LayerView]:
    """ids: (1, T). The model is in float32."""
    with torch.inference_mode():
        return [view_of(layer) for layer in passes_of(model, ids)]


def passes_of(model: NexusPreTrainedModel, ids: torch.Tensor) -> list[LayerPass]:
    """Runs the model once, with hooks that are gone afterwards."""
    passes = []

    def begin(attention: NexusAttention, args: tuple) -> None:
        hidden_states, position_embeddings, mask = args[:3]
        passes.append(LayerPass(attention, hidden_states[0], position_embeddings, mask))

    def record(call: AttentionCall, module: nn.Module, args: tuple, output: tuple) -> None:
        passes[-1].calls.append(recorded(module, call.level, branch_of(call), args, output))

    with ExitStack() as hooks:
        for layer in model.base_model.layers:
            hooks.callback(layer.self_attn.register_forward_pre_hook(begin).remove)
            for call in layer.self_attn.calls:
                module = layer.self_attn.get_submodule(call.name)
                hooks.callback(module.register_forward_hook(partial(record, call)).remove)
        model.base_model(ids, use_cache=False)
    for layer in passes:
        if layer.calls[0].branch is not None:  # in "shared" and at order 1 it is level 1
            layer.calls.insert(0, unrefined(layer))
    return passes


def branch_of(call: AttentionCall) -> str | None:
    return next((branch for branch in BRANCHES if f"inner_{branch}" in call.name), None)


def recorded(module: nn.Module, level: int, branch: str | None, args: tuple, output: tuple) -> Call:
    query, key, value = (part[0] for part in args[:3])
    distance = torch.arange(query.shape[1])[:, None] - torch.arange(query.shape[1])
    visible = distance.abs() < (module.sliding_window or query.shape[1])
    if module.is_causal:
        visible &= distance >= 0
    return Call(level, branch, query, key, value, output[1][0], output[0][0], visible, module.scaling)


def unrefined(layer: LayerPass) -> Call:
    """What the last level would do if nothing were refined, as with closed gates."""
    attention, source = layer.attention, (layer.hidden_states[None], layer.position_embeddings)
    args = attention.query(*source), attention.key(*source), attention.value(source[0]), layer.mask
    return recorded(attention.outer, 0, None, args, attention.outer(*args))


def view_of(layer: LayerPass) -> LayerView:
    first, last = layer.calls[0].weights, layer.calls[-1].weights
    change = (last - first).abs().sum(-1).mean(-1) / 2
    paths = PathFinder(layer).paths() if change.max() > 0 else [[] for _ in change]
    causal = layer.attention.config.is_causal
    shown = torch.ones(last.shape[-2:], dtype=torch.bool)
    shown = shown.tril() if causal else shown
    maps = []
    for call in layer.calls:
        cells = kept(call.weights[:, shown]).to(torch.int16).numpy().view(np.uint16)
        maps.append(Maps(call.level, call.branch, cells, causal))
    return LayerView(maps, change.tolist(), paths)


def kept(weights: torch.Tensor) -> torch.Tensor:
    """
    Weights in thousandths. Below 0.01, where no number is printed, they are 0, 1, 4 or 9: even steps of the square
    root, by which maps are coloured. Most weights are below, so this is what keeps the page small.
    """
    thousandths = weights * STEPS
    return torch.where(thousandths < 9.5, thousandths.sqrt().round().square(), thousandths.round())


def check_size(config: NexusConfig, tokens: int) -> None:
    maps = 0
    for calls in config.attention_calls():
        maps += sum(call.num_query_heads for call in calls)
        maps += config.num_attention_heads if branch_of(calls[0]) else 0  # with nothing refined
    cells = tokens * (tokens + 1) // 2 if config.is_causal else tokens * tokens
    if maps * cells > MAX_CELLS:
        most = MAX_CELLS // maps
        fit = (math.isqrt(8 * most + 1) - 1) // 2 if config.is_causal else math.isqrt(most)
        raise InspectionError(
            f"The page would be too large for a browser: {maps} maps of {tokens} tokens each are more than "
            f"{MAX_CELLS // 1_000_000} million weights. Of this model it can show {fit} tokens; shorten the prompt."
        )
