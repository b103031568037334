"""EXAONE 4 without windows: norms after attention and feed-forward, and on every query and key head."""

from .llama import ATTENTION, CONFIG, EMBEDDINGS, MLP
from .olmo2 import NORMS
from .qwen3 import QK_NORMS
from .rules import LAYER_TYPES, Computed, parameters, same_names

MODEL_TYPE = "exaone4"

RULES = {
    "models": "EXAONE 4.0 1.2B",
    "config": CONFIG,
    "computed": Computed(
        LAYER_TYPES.fields, LAYER_TYPES.read, lambda config: {"sliding_window": None, **LAYER_TYPES.write(config)}
    ),
    "fixed": {"qk_norm": True, "norm_position": "post"},
    "ignored": frozenset({"sliding_window_pattern"}),
    "required": {"sliding_window": None},
    "because": {"sliding_window": "with windows, its other layers have no positions, and Nexus rotates in all"},
    "weights": same_names(parameters([*EMBEDDINGS, *ATTENTION, *MLP, *QK_NORMS, *NORMS], "weight")),
}
