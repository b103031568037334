"""GLM-4 of 2025: GLM-4 of 2024 with norms before and after attention and feed-forward."""

from .glm import RULES as GLM
from .rules import renamed, without

MODEL_TYPE = "glm4"

LAYER = "model.layers.*"

RULES = {
    **GLM,
    "models": "GLM-4 9B and 32B of 2025 (0414)",
    "fixed": {**GLM["fixed"], "norm_position": "both"},
    "weights": {
        **without(GLM["weights"], f"{LAYER}.post_attention_layernorm.weight"),
        **renamed(
            {
                f"{LAYER}.post_self_attn_layernorm.weight": f"{LAYER}.post_attention_layernorm.weight",
                f"{LAYER}.post_attention_layernorm.weight": f"{LAYER}.pre_feedforward_layernorm.weight",
                f"{LAYER}.post_mlp_layernorm.weight": f"{LAYER}.post_feedforward_layernorm.weight",
            }
        ),
    },
}
