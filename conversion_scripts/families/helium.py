"""Helium: Llama with pairs that are rotated together side by side, and norms in float32."""

from .llama import ATTENTION, CONFIG, MLP, WEIGHTS
from .rules import parameters, rotated_pairs, same_names

MODEL_TYPE = "helium"

RULES = {
    "models": "Helium 1",
    "config": {**CONFIG, "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    "fixed": {"attention_out_bias": False, "float32_norm": True},
    "ignored": frozenset({"pretraining_tp"}),
    "weights": {
        **WEIGHTS,
        **same_names(parameters([ATTENTION[2], *MLP], "bias")),
        **rotated_pairs("weight", "bias"),
    },
}
