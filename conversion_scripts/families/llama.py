"""Llama 1 to 3, TinyLlama, SmolLM and SmolLM2: the architecture whose names Nexus keeps, and many others have."""

from .rules import LEFT_BEHIND, parameters, same_names

MODEL_TYPE = "llama"

# What the other families share

CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden_act": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
    "rope_parameters": "rope_parameters",
    "attention_dropout": "attention_dropout",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
    "use_cache": "use_cache",
}
ATTENTION = [f"model.layers.*.self_attn.{projection}_proj" for projection in ("q", "k", "v", "o")]
MLP = [f"model.layers.*.mlp.{projection}_proj" for projection in ("gate", "up", "down")]
NORMS = ["model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm", "model.norm"]
EMBEDDINGS = ["model.embed_tokens", "lm_head"]
WEIGHTS = {
    **same_names(parameters([*EMBEDDINGS, *ATTENTION, *MLP, *NORMS], "weight")),
    "model.layers.*.self_attn.rotary_emb.inv_freq": LEFT_BEHIND,  # a buffer that old checkpoints saved
}

RULES = {
    "models": "Llama 1 to 3, TinyLlama, SmolLM, SmolLM2",
    "config": {**CONFIG, "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    "ignored": frozenset({"pretraining_tp", "max_sequence_length"}),
    "required": {"rope_interleaved": False},
    "weights": {**WEIGHTS, **same_names(parameters([*ATTENTION, *MLP], "bias"))},
}
