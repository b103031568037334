"""Granite 3, dense: Llama with factors on embeddings, residuals, attention and logits."""

from .llama import CONFIG
from .llama import RULES as LLAMA
from .rules import Computed

MODEL_TYPE = "granite"

FACTORS = ["embedding_multiplier", "residual_multiplier", "logits_scaling"]

RULES = {
    "models": "Granite 3, dense",
    "config": {
        **CONFIG,
        **{name: name for name in FACTORS},
        "attention_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
    },
    "computed": Computed(
        frozenset({"attention_multiplier"}),
        lambda config: {"attention_multiplier": config.attention_multiplier},
        lambda config: {"attention_multiplier": config.attention_multiplier or config.head_dim**-0.5},
    ),
    "weights": LLAMA["weights"],
}
