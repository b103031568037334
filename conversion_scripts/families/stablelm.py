"""StableLM: Llama with LayerNorm, biases on queries, keys and values, and partial rotary embedding."""

from .llama import ATTENTION, CONFIG, NORMS, WEIGHTS
from .rules import ROTARY_SHARE, parameters, same_names, without

MODEL_TYPE = "stablelm"

RULES = {
    "models": "StableLM 3B, StableLM 2 1.6B, Stable Code 3B",
    "config": {
        **without(CONFIG, "rms_norm_eps", "head_dim"),
        "layer_norm_eps": "rms_norm_eps",
        "use_qkv_bias": "attention_bias",
    },
    "computed": ROTARY_SHARE,
    "fixed": {"norm_type": "layernorm", "attention_out_bias": False},
    "partial_rotary": True,
    "ignored": frozenset({"hidden_dropout"}),
    "required": {"use_parallel_residual": False, "qk_layernorm": False},
    "weights": {**WEIGHTS, **same_names(parameters(NORMS, "bias") + parameters(ATTENTION[:3], "bias"))},
}
