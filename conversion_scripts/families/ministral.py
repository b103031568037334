"""Ministral 8B of 2024: Mistral with windows in some layers."""

from .llama import CONFIG, WEIGHTS
from .rules import LAYER_TYPES

MODEL_TYPE = "ministral"

RULES = {"models": "Ministral 8B of 2024", "config": CONFIG, "computed": LAYER_TYPES, "weights": WEIGHTS}
