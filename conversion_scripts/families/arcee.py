"""Arcee's AFM: Llama whose feed-forward has no gate."""

from .llama import ATTENTION, CONFIG, EMBEDDINGS, MLP, NORMS
from .rules import parameters, same_names

MODEL_TYPE = "arcee"

UNGATED = MLP[1:]

RULES = {
    "models": "Arcee AFM-4.5B",
    "config": {**CONFIG, "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    "fixed": {"mlp_gated": False},
    "weights": same_names(
        parameters([*EMBEDDINGS, *ATTENTION, *UNGATED, *NORMS], "weight") + parameters([*ATTENTION, *UNGATED], "bias")
    ),
}
