"""Mistral 7B, and the models in its format: Llama with an optional window in every layer."""

from .llama import CONFIG, WEIGHTS

MODEL_TYPE = "mistral"

RULES = {"models": "Mistral 7B", "config": {**CONFIG, "sliding_window": "sliding_window"}, "weights": WEIGHTS}
