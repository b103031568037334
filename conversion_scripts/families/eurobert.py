"""EuroBERT, an encoder: Llama whose tokens see both sides."""

from .llama import ATTENTION, CONFIG, WEIGHTS
from .rules import parameters, same_names

MODEL_TYPE = "eurobert"

RULES = {
    "models": "EuroBERT (encoder)",
    "config": {**CONFIG, "attention_bias": "attention_bias"},
    "fixed": {"is_causal": False},
    "ignored": frozenset({"classifier_pooling", "clf_pooling", "hidden_dropout", "mask_token", "pretraining_tp"}),
    "required": {"mlp_bias": False},
    "because": {"mlp_bias": "its logits then have a bias too, and those of Nexus have none"},
    "weights": {**WEIGHTS, **same_names(parameters(ATTENTION, "bias"))},
}
