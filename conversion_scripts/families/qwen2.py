"""Qwen 1.5, 2 and 2.5: Llama with biases on queries, keys and values, and windows in some layers."""

from .llama import ATTENTION, CONFIG, WEIGHTS
from .rules import WINDOWED_LAYERS, parameters, same_names

MODEL_TYPE = "qwen2"

RULES = {
    "models": "Qwen1.5, Qwen2 and Qwen2.5",
    "config": CONFIG,
    "computed": WINDOWED_LAYERS,
    "fixed": {"attention_bias": True, "attention_out_bias": False},
    "required": {"use_mrope": False},
    "weights": {**WEIGHTS, **same_names(parameters(ATTENTION[:3], "bias"))},
}
