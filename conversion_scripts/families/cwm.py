"""Code World Model: Llama with windows in three of four layers."""

from .llama import CONFIG, MLP, WEIGHTS
from .rules import LAYER_TYPES, parameters, same_names

MODEL_TYPE = "cwm"

RULES = {
    "models": "Code World Model (CWM)",
    "config": {**CONFIG, "mlp_bias": "mlp_bias"},
    "computed": LAYER_TYPES,
    "ignored": frozenset({"pretraining_tp"}),
    "weights": {**WEIGHTS, **same_names(parameters(MLP, "bias"))},
}
