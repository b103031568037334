"""OLMo 2: norms after attention and feed-forward, and over all heads of queries and keys; both in float32."""

from .llama import ATTENTION, CONFIG, EMBEDDINGS, MLP
from .qwen3 import QK_NORMS
from .rules import parameters, same_names

MODEL_TYPE = "olmo2"

NORMS = ["model.layers.*.post_attention_layernorm", "model.layers.*.post_feedforward_layernorm", "model.norm"]

FLOAT32 = {"float32_norm": True, "float32_rope": True}

RULES = {
    "models": "OLMo 2",
    "config": {**CONFIG, "attention_bias": "attention_bias"},
    "fixed": {"qk_norm": "across_heads", "norm_position": "post", **FLOAT32},
    "weights": same_names(
        parameters([*EMBEDDINGS, *ATTENTION, *MLP, *QK_NORMS, *NORMS], "weight") + parameters(ATTENTION, "bias")
    ),
}
