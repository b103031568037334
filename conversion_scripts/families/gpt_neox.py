"""GPT-NeoX and Pythia: LayerNorm, biases, partial rotary embedding, parallel residual, fused projections."""

from .llama import CONFIG
from .rules import LEFT_BEHIND, interleaved_heads, renamed, without

MODEL_TYPE = "gpt_neox"

_MODULES = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}

RULES = {
    "models": "Pythia, GPT-NeoX",
    "config": {
        **without(CONFIG, "num_key_value_heads", "head_dim", "rms_norm_eps"),
        "layer_norm_eps": "rms_norm_eps",
        "use_parallel_residual": "parallel_residual",
        "attention_bias": "attention_bias",
        "classifier_dropout": "classifier_dropout",
    },
    "fixed": {"norm_type": "layernorm", "mlp_gated": False, "mlp_bias": True},
    "partial_rotary": True,
    "ignored": frozenset({"is_decoder", "attention_probs_dropout_prob", "hidden_dropout_prob"}),
    "required": {"hidden_dropout": 0.0},
    "saved_as": {"lm_head.weight": "embed_out.weight"},
    "weights": {
        **renamed(
            {
                "gpt_neox.embed_in.weight": "model.embed_tokens.weight",
                "gpt_neox.final_layer_norm.weight": "model.norm.weight",
                "gpt_neox.final_layer_norm.bias": "model.norm.bias",
                "embed_out.weight": "lm_head.weight",
                "lm_head.weight": "lm_head.weight",  # as newer Transformers calls it in memory
            }
        ),
        **renamed(
            {
                f"gpt_neox.layers.*.{source}.{kind}": f"model.layers.*.{target}.{kind}"
                for source, target in _MODULES.items()
                for kind in ("weight", "bias")
            }
        ),
        "gpt_neox.layers.*.attention.query_key_value.weight": interleaved_heads("weight"),
        "gpt_neox.layers.*.attention.query_key_value.bias": interleaved_heads("bias"),
        # buffers that old checkpoints saved
        "gpt_neox.layers.*.attention.bias": LEFT_BEHIND,
        "gpt_neox.layers.*.attention.masked_bias": LEFT_BEHIND,
        "gpt_neox.layers.*.attention.rotary_emb.inv_freq": LEFT_BEHIND,
    },
}
