"""SmolLM3: Llama with layers that do not rotate queries and keys, and windows in some of its models."""

from typing import Any

from ...configuration_nexus import NexusConfig
from .llama import CONFIG
from .llama import RULES as LLAMA
from .rules import LAYER_TYPES, Computed, windowed_layers

MODEL_TYPE = "smollm3"


def _read(config: Any) -> dict[str, Any]:
    rotated = config.no_rope_layers[: config.num_hidden_layers]
    return {
        "layers_without_rope": [layer for layer, rotates in enumerate(rotated) if not rotates] or None,
        **LAYER_TYPES.read(config),
    }


def _write(config: NexusConfig) -> dict[str, Any]:
    rotated = [int(layer not in (config.layers_without_rope or ())) for layer in range(config.num_layers)]
    windowed = bool(windowed_layers(config))
    return {"no_rope_layers": rotated, "use_sliding_window": windowed, **LAYER_TYPES.write(config)}


RULES = {
    "models": "SmolLM3",
    "config": {**CONFIG, "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    "computed": Computed(LAYER_TYPES.fields | {"no_rope_layers", "use_sliding_window"}, _read, _write),
    "ignored": frozenset({"max_window_layers", "no_rope_layer_interval", "pretraining_tp"}),
    "weights": LLAMA["weights"],
}
