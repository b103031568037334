"""Jais 2: Llama with LayerNorm, biases and a feed-forward without a gate."""

from . import arcee
from .llama import NORMS
from .rules import parameters, same_names, without

MODEL_TYPE = "jais2"

RULES = {
    "models": "Jais 2",
    "config": {**without(arcee.RULES["config"], "rms_norm_eps"), "layer_norm_eps": "rms_norm_eps"},
    "fixed": {"mlp_gated": False, "norm_type": "layernorm"},
    "weights": {**arcee.RULES["weights"], **same_names(parameters(NORMS, "bias"))},
}
