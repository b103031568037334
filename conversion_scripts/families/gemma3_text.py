"""Gemma 3, text: norms of 1 + w on both sides, scaled embeddings, and windows with another rotary embedding."""

from typing import Any

from ...configuration_nexus import NexusConfig
from .llama import ATTENTION, CONFIG, WEIGHTS
from .olmo2 import NORMS
from .qwen3 import QK_NORMS
from .rules import WINDOWS_WITH_ROPE, Computed, parameters, same_names, without

MODEL_TYPE = "gemma3_text"

OTHER_NORMS = ["model.layers.*.pre_feedforward_layernorm", "model.layers.*.post_feedforward_layernorm"]


def _read(config: Any) -> dict[str, Any]:
    return {
        "embedding_multiplier": config.hidden_size**0.5,
        "attention_multiplier": config.query_pre_attn_scalar**-0.5,
        **WINDOWS_WITH_ROPE.read(config),
    }


def _write(config: NexusConfig) -> dict[str, Any]:
    multiplier = config.attention_multiplier or config.head_dim**-0.5
    return {"query_pre_attn_scalar": round(multiplier**-2), **WINDOWS_WITH_ROPE.write(config)}


RULES = {
    "models": "Gemma 3 270M and 1B",
    "config": {
        **without(CONFIG, "hidden_act", "rope_parameters"),
        "hidden_activation": "hidden_act",
        "attention_bias": "attention_bias",
    },
    "computed": Computed(WINDOWS_WITH_ROPE.fields | {"query_pre_attn_scalar"}, _read, _write),
    "fixed": {"qk_norm": True, "norm_type": "zero_centered_rmsnorm", "norm_position": "both"},
    "ignored": frozenset({"_sliding_window_pattern", "sliding_window_pattern"}),
    "required": {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    "because": {"use_bidirectional_attention": "Nexus attends to what came before only"},
    "weights": {
        **WEIGHTS,
        **same_names(parameters([*QK_NORMS, *NORMS, *OTHER_NORMS], "weight") + parameters(ATTENTION, "bias")),
    },
}
