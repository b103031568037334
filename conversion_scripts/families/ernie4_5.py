"""ERNIE 4.5, dense: Llama with pairs that are rotated together side by side, and one switch for all biases."""

from .llama import CONFIG
from .llama import RULES as LLAMA
from .rules import rotated_pairs, switch, without

MODEL_TYPE = "ernie4_5"

RULES = {
    "models": "ERNIE 4.5, dense (0.3B)",
    "config": without(CONFIG, "attention_dropout"),
    "computed": switch("use_bias", "attention_bias", "mlp_bias"),
    "fixed": {"float32_rope": True},
    "weights": {**LLAMA["weights"], **rotated_pairs("weight", "bias")},
}
