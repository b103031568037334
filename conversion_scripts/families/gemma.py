"""Gemma 1: Llama with norms of 1 + w and scaled embeddings."""

from typing import Any

from ...errors import ConversionError
from .llama import ATTENTION, CONFIG, WEIGHTS
from .rules import Computed, parameters, same_names

MODEL_TYPE = "gemma"


def _read(config: Any) -> dict[str, Any]:
    if config.hidden_act == "gelu":  # 5.16 takes it at its word, which its checkpoints do not mean
        raise ConversionError(
            "config.json: hidden_act='gelu' of a Gemma means its approximation by tanh, which this Transformers does "
            "not know: pip install --upgrade transformers."
        )
    return {"embedding_multiplier": config.hidden_size**0.5}


RULES = {
    "models": "Gemma 1 and CodeGemma",
    "config": {**CONFIG, "attention_bias": "attention_bias"},
    "computed": Computed(frozenset(), _read, lambda config: {}),
    "fixed": {"norm_type": "zero_centered_rmsnorm"},
    "ignored": frozenset({"hidden_activation"}),  # Transformers 5 does not read it
    "required": {"use_bidirectional_attention": None},
    "because": {"use_bidirectional_attention": "Nexus attends to what came before only"},
    "weights": {**WEIGHTS, **same_names(parameters(ATTENTION, "bias"))},
}
