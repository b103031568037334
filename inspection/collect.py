"""One forward pass, and of every layer what the page shows. Each layer is worked up as it passes, and let go."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import ConversionError
from ..modeling_nexus import NexusAttention, NexusAttentionCall, NexusPreTrainedModel
from .credits import Call
from .paths import Path, PathFinder

STEPS = 65535  # weights are kept in 16 bits, to 1/65535
MAX_CELLS = 32_000_000  # of all maps together: 64 MB, of which a page becomes 85 MB; browsers still open it quickly


@dataclass
class LayerView:
    """
    Attributes:
        maps: (order, H, T (T + 1) / 2) uint16, the weights of each level and head: rows 0, 1, ... up to the diagonal.
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


@torch.inference_mode()
def collect(model: NexusPreTrainedModel, ids: torch.Tensor) -> list[LayerView]:
    """ids: (1, T)."""
    views = []

    def finished(attention: NexusAttention, args: tuple, calls: list[Call]) -> None:
        hidden_states, position_embeddings = args[0][0].float(), args[1]
        views.append(view_of(attention, hidden_states, position_embeddings, calls))

    with ExitStack() as hooks:
        for layer in model.base_model.layers:
            watch(layer.self_attn, finished, hooks)
        model.base_model(ids, use_cache=False)
    return views


def watch(attention: NexusAttention, finished: Callable, hooks: ExitStack) -> None:
    """After each pass of this layer, calls `finished` with what it was given and what its calls did."""
    calls = []

    def record(call: NexusAttentionCall, args: tuple, output: tuple) -> None:
        query, key, value = (part[0].float() for part in args[:3])
        distance = torch.arange(query.shape[1])[:, None] - torch.arange(query.shape[1])
        visible = (distance >= 0) & (distance < (call.sliding_window or query.shape[1]))
        calls.append(Call(query, key, value, output[1][0].float(), output[0][0].float(), visible, call.scaling))

    def finish(attention: NexusAttention, args: tuple, output: torch.Tensor) -> None:
        finished(attention, args, calls)
        calls.clear()

    for level in range(attention.order):
        handle = getattr(attention, attention.call_name(level)).register_forward_hook(record)
        hooks.callback(handle.remove)
    hooks.callback(attention.register_forward_hook(finish).remove)


def view_of(attention: NexusAttention, hidden_states, position_embeddings, calls: list[Call]) -> LayerView:
    weights = torch.stack([call.weights for call in calls])  # (order, H, T, T)
    rows, columns = np.tril_indices(weights.shape[-1])
    maps = (weights[:, :, rows, columns] * STEPS).round().to(torch.int32).numpy().astype(np.uint16)
    change = (weights[-1] - weights[0]).abs().sum(-1).mean(-1) / 2
    paths = [[] for _ in change]
    if len(calls) > 1 and change.max() > 0:
        finder = PathFinder(attention, hidden_states, position_embeddings, calls)
        paths = [finder.paths(head) for head in range(len(change))]
    return LayerView(maps, change.tolist(), paths)


def check_size(config, tokens: int) -> None:
    maps = sum(config.layer_orders) * config.num_attention_heads
    if maps * tokens * (tokens + 1) // 2 > MAX_CELLS:
        fit = int((2 * MAX_CELLS / maps) ** 0.5) - 1
        raise ConversionError(
            f"The page would be too large for a browser: {maps} maps of {tokens} tokens each. Of this model it can "
            f"show {fit} tokens; shorten the prompt."
        )
