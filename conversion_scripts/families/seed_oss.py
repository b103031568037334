"""Seed-OSS: Llama with a switch for the bias of the output projection."""

from .llama import RULES as LLAMA

MODEL_TYPE = "seed_oss"

RULES = {
    "models": "Seed-OSS-36B",
    "config": {**LLAMA["config"], "attention_out_bias": "attention_out_bias"},
    "ignored": frozenset({"pretraining_tp", "residual_dropout"}),
    "weights": LLAMA["weights"],
}
