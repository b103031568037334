"""GLM-4 of 2024: Llama with pairs that are rotated together side by side, in half of each head."""

from .llama import ATTENTION, CONFIG, EMBEDDINGS, MLP, NORMS
from .phi3 import GATE_UP
from .rules import ROTARY_SHARE, parameters, rotated_pairs, same_names

MODEL_TYPE = "glm"

RULES = {
    "models": "GLM-4 9B of 2024, GLM-Edge",
    "config": {**CONFIG, "attention_bias": "attention_bias"},
    "computed": ROTARY_SHARE,
    "fixed": {"attention_out_bias": False},
    "partial_rotary": True,
    "weights": {
        **same_names(parameters([*EMBEDDINGS, *NORMS, *ATTENTION[2:], MLP[2]], "weight")),
        **same_names(parameters([ATTENTION[2]], "bias")),
        **rotated_pairs("weight", "bias"),
        **GATE_UP,
    },
}
