"""Qwen 3, dense: Llama with a norm on every query and key head, and windows in some layers."""

from .llama import ATTENTION, CONFIG, WEIGHTS
from .rules import WINDOWED_LAYERS, parameters, same_names

MODEL_TYPE = "qwen3"

QK_NORMS = ["model.layers.*.self_attn.q_norm", "model.layers.*.self_attn.k_norm"]

RULES = {
    "models": "Qwen3",
    "config": {**CONFIG, "attention_bias": "attention_bias"},
    "computed": WINDOWED_LAYERS,
    "fixed": {"qk_norm": True},
    "weights": {**WEIGHTS, **same_names(parameters(QK_NORMS, "weight") + parameters(ATTENTION, "bias"))},
}
