"""EuroBERT, an encoder: Llama whose tokens see both sides."""

from typing import Any

from ...configuration_nexus import NexusConfig
from .llama import ATTENTION, CONFIG, MLP, WEIGHTS
from .rules import Computed, parameters, same_names

MODEL_TYPE = "eurobert"


def _read(config: Any) -> dict[str, Any]:
    # "late" classifies every token and takes the mean, which of a linear classifier is that of the mean
    pooling = "first" if config.classifier_pooling == "bos" else "mean"
    return {"classifier_pooling": pooling, "mask_token_id": config.mask_token_id, "lm_head_bias": config.mlp_bias}


def _write(config: NexusConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {"classifier_pooling": "bos" if config.classifier_pooling == "first" else "late"}
    return fields if config.mask_token_id is None else {**fields, "mask_token_id": config.mask_token_id}


RULES = {
    "models": "EuroBERT (encoder)",
    "config": {**CONFIG, "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    "computed": Computed(frozenset({"classifier_pooling", "mask_token_id"}), _read, _write),
    "fixed": {"is_causal": False},
    "ignored": frozenset({"clf_pooling", "hidden_dropout", "mask_token", "pretraining_tp"}),
    "weights": {**WEIGHTS, **same_names([*parameters([*ATTENTION, *MLP], "bias"), "lm_head.bias"])},
}
