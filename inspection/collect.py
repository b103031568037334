"""One forward pass, and of every layer what the page shows."""

from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import InspectionError
from ..modeling_nexus import NexusAttention, NexusAttentionCall, NexusPreTrainedModel
from .credits import Call
from .paths import Path, PathFinder

STEPS = 1000  # weights are kept to three decimals, which is what the page prints; those below 0.01, see `kept`
MAX_CELLS = 32_000_000  # of all maps together; the browser holds two bytes of each


@dataclass
class LayerView:
    """
    Attributes:
        maps: (order, H, T (T + 1) / 2) uint16, the weights of each level and head as `kept`: rows 0, 1, ... up to the
            diagonal.
        change: per head, the share of its attention that the last level puts elsewhere than the first, mean over rows.
        paths: per head; empty at order 1, and where gates are closed.
    """

    maps: np.ndarray
    change: list[float]
    paths: list[list[Path]]

    @property
    def order(self) -> int:
        return len(self.maps)

    def weights(self, level: int, head: int) -> np.ndarray:
        """(T, T), the level counted from 0."""
        packed = self.maps[level, head]
        size = int((2 * len(packed)) ** 0.5)
        weights = np.zeros((size, size), np.float32)
        weights[np.tril_indices(size)] = packed / np.float32(STEPS)
        return weights


@dataclass
class LayerPass:
    """What one layer did in a forward pass. hidden_states: its attention's input X, (T, D)."""

    attention: NexusAttention
    hidden_states: torch.Tensor
    position_embeddings: tuple[torch.Tensor, torch.Tensor]
    calls: list[Call] = field(default_factory=list)


def collect(model: NexusPreTrainedModel, ids: torch.Tensor) -> list[LayerView]:
    """ids: (1, T). The model is in float32."""
    with torch.inference_mode():
        return [view_of(layer) for layer in passes_of(model, ids)]


def passes_of(model: NexusPreTrainedModel, ids: torch.Tensor) -> list[LayerPass]:
    """Runs the model once, with hooks that are gone afterwards."""
    passes = []

    def begin(attention: NexusAttention, args: tuple) -> None:
        passes.append(LayerPass(attention, args[0][0], args[1]))

    def record(call: NexusAttentionCall, args: tuple, output: tuple) -> None:
        query, key, value = (part[0] for part in args[:3])
        distance = torch.arange(query.shape[1])[:, None] - torch.arange(query.shape[1])
        visible = (distance >= 0) & (distance < (call.sliding_window or query.shape[1]))
        passes[-1].calls.append(Call(query, key, value, output[1][0], output[0][0], visible, call.scaling))

    with ExitStack() as hooks:
        for layer in model.base_model.layers:
            hooks.callback(layer.self_attn.register_forward_pre_hook(begin).remove)
            for call in layer.self_attn.children():
                if isinstance(call, NexusAttentionCall):
                    hooks.callback(call.register_forward_hook(record).remove)
        model.base_model(ids, use_cache=False)
    return passes


def view_of(layer: LayerPass) -> LayerView:
    weights = torch.stack([call.weights for call in layer.calls])  # (order, H, T, T)
    rows, columns = torch.tril_indices(*weights.shape[-2:])
    maps = kept(weights[:, :, rows, columns]).to(torch.int16).numpy().view(np.uint16)
    change = (weights[-1] - weights[0]).abs().sum(-1).mean(-1) / 2
    paths = PathFinder(layer).paths() if change.max() > 0 else [[] for _ in change]
    return LayerView(maps, change.tolist(), paths)


def kept(weights: torch.Tensor) -> torch.Tensor:
    """
    Weights in thousandths. Below 0.01, where no number is printed, they are 0, 1, 4 or 9: even steps of the square
    root, by which maps are coloured. Most weights are below, so this is what keeps the page small.
    """
    thousandths = weights * STEPS
    return torch.where(thousandths < 9.5, thousandths.sqrt().round().square(), thousandths.round())


def check_size(config, tokens: int) -> None:
    maps = sum(config.layer_orders) * config.num_attention_heads
    if maps * tokens * (tokens + 1) // 2 > MAX_CELLS:
        fit = int((2 * MAX_CELLS / maps) ** 0.5) - 1
        raise InspectionError(
            f"The page would be too large for a browser: {maps} maps of {tokens} tokens each are more than "
            f"{MAX_CELLS // 1_000_000} million weights. Of this model it can show {fit} tokens; shorten the prompt."
        )
