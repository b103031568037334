"""Phi-3, Phi-3.5 and Phi-4, mini and medium: Llama with fused projections, partial rotary embedding and LongRoPE."""

from .llama import CONFIG, WEIGHTS
from .rules import Computed, attention_projections, stacked

MODEL_TYPE = "phi3"

_SPLIT = [f"self_attn.{name}_proj" for name in ("q", "k", "v")] + ["mlp.gate_proj", "mlp.up_proj"]

GATE_UP = {
    "model.layers.*.mlp.gate_up_proj.weight": stacked(
        ("model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"),
        lambda config: [config.intermediate_size, config.intermediate_size],
    ),
}

RULES = {
    "models": "Phi-3, Phi-4-mini",
    "config": {**CONFIG, "sliding_window": "sliding_window"},
    "computed": Computed(
        frozenset({"original_max_position_embeddings"}),
        lambda config: {},  # Transformers has taken it into rope_parameters, where LongRoPE needs it
        lambda config: {
            "original_max_position_embeddings": config.rope_parameters.get(
                "original_max_position_embeddings", config.max_position_embeddings
            )
        },
    ),
    "partial_rotary": True,
    "required": {
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        # in the config.json of Phi-4-mini
        "attention_bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
    },
    "weights": {
        **{name: rule for name, rule in WEIGHTS.items() if not any(module in name for module in _SPLIT)},
        "model.layers.*.self_attn.qkv_proj.weight": stacked(
            attention_projections("weight"),
            lambda config: [
                heads * config.head_dim
                for heads in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
            ],
        ),
        **GATE_UP,
    },
}
