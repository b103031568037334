"""Gemma 1: Llama with norms of 1 + w and scaled embeddings."""

from .llama import ATTENTION, CONFIG, WEIGHTS
from .rules import Computed, parameters, same_names

MODEL_TYPE = "gemma"

RULES = {
    "models": "Gemma 1 and CodeGemma",
    "config": {**CONFIG, "attention_bias": "attention_bias"},
    "computed": Computed(
        frozenset(), lambda config: {"embedding_multiplier": config.hidden_size**0.5}, lambda config: {}
    ),
    "fixed": {"norm_type": "zero_centered_rmsnorm"},
    "ignored": frozenset({"hidden_activation"}),  # Transformers 5 does not read it
    "required": {"use_bidirectional_attention": None},
    "because": {"use_bidirectional_attention": "Nexus attends to what came before only"},
    "weights": {**WEIGHTS, **same_names(parameters(ATTENTION, "bias"))},
}
