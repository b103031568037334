"""EXAONE 4: norms after attention and feed-forward, and on every head; with windows, other layers have no positions."""

from typing import Any

from ...configuration_nexus import NexusConfig
from .llama import ATTENTION, CONFIG, EMBEDDINGS, MLP
from .olmo2 import NORMS
from .qwen3 import QK_NORMS
from .rules import LAYER_TYPES, Computed, parameters, same_names

MODEL_TYPE = "exaone4"


def _read(config: Any) -> dict[str, Any]:
    if config.sliding_window is None:
        return {}
    unwindowed = [layer for layer, kind in enumerate(config.layer_types) if kind == "full_attention"]
    return {"layers_without_rope": unwindowed or None, **LAYER_TYPES.read(config)}


def _write(config: NexusConfig) -> dict[str, Any]:
    # Any window, so the default too, says that unwindowed layers have no positions, even where no layer is windowed.
    return {**({} if config.layers_without_rope else {"sliding_window": None}), **LAYER_TYPES.write(config)}


RULES = {
    "models": "EXAONE 4.0",
    "config": CONFIG,
    "computed": Computed(LAYER_TYPES.fields, _read, _write),
    "fixed": {"qk_norm": True, "norm_position": "post"},
    "ignored": frozenset({"sliding_window_pattern"}),
    "weights": same_names(parameters([*EMBEDDINGS, *ATTENTION, *MLP, *QK_NORMS, *NORMS], "weight")),
}
