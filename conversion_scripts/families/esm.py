"""ESM-2, an encoder of proteins: LayerNorm, biases, token dropout, a deeper head, rotary frequencies in the weights."""

from typing import Any

import torch

from ...configuration_nexus import NexusConfig
from .llama import CONFIG
from .rules import LEFT_BEHIND, Computed, from_config, renamed, rope_of, without

MODEL_TYPE = "esm"

FREQUENCIES = "esm.rotary_embeddings.inv_freq"
# Published ones have one in each layer; Transformers 5 writes one, with "*" for the number.
OLD_FREQUENCIES = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"

_LAYER = {
    "attention.LayerNorm": "input_layernorm",
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.o_proj",
    "LayerNorm": "post_attention_layernorm",
    "intermediate.dense": "mlp.up_proj",
    "output.dense": "mlp.down_proj",
}
_OLD_KINDS = {"weight": "gamma", "bias": "beta"}  # so Transformers saves modules that are named LayerNorm
_UNSAID = "attention_dropout head_dim hidden_act num_key_value_heads rms_norm_eps rope_parameters".split()
_MODULES = {
    **{f"esm.encoder.layer.*.{source}": f"model.layers.*.{target}" for source, target in _LAYER.items()},
    "esm.encoder.emb_layer_norm_after": "model.norm",
    "lm_head.dense": "lm_head_transform.dense",
    "lm_head.layer_norm": "lm_head_transform.norm",
}


def _read(config: Any) -> dict[str, Any]:
    # Its rotary embedding reads nothing else: a `rope_scaling` is refused, as one that is not in here.
    rope = {"rope_type": "default", "rope_theta": rope_of(config)["rope_theta"]}
    return {"rope_parameters": rope, "classifier_pooling": "first"}


def _write(config: NexusConfig) -> dict[str, Any]:
    built_in = {"position_embedding_type": "rotary", "emb_layer_norm_before": False, "hidden_dropout_prob": 0.0}
    return {**built_in, "rope_theta": config.rope_parameters["rope_theta"]}


def frequencies(config: NexusConfig) -> torch.Tensor:
    if config.rope_frequencies is not None:
        return torch.tensor(config.rope_frequencies, dtype=torch.float)
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
    return 1.0 / (config.rope_parameters["rope_theta"] ** exponents)


def written_frequencies(config: NexusConfig) -> torch.Tensor:
    """In the dtype of the weights, as the source has them, if that holds them."""
    exact = frequencies(config)
    rounded = exact.to(config.dtype)
    return rounded if torch.equal(rounded.float(), exact) else exact


def read_frequencies(checkpoint: Any, config: NexusConfig) -> list[float] | None:
    """
    Those that were trained with: Transformers says that published models have them rounded to float16. None where they
    are those that follow from `rope_theta`.
    """
    names = (FREQUENCIES, *(OLD_FREQUENCIES.format(layer) for layer in (0, "*")))
    name = next((name for name in names if name in checkpoint.tensors), None)
    if name is None:
        return None
    found = checkpoint.read(name).float()
    return None if torch.equal(found, frequencies(config)) else found.tolist()


RULES = {
    "models": "ESM-2 (encoder of proteins)",
    "config": {
        **without(CONFIG, *_UNSAID),
        "layer_norm_eps": "rms_norm_eps",
        "attention_probs_dropout_prob": "attention_dropout",
        "token_dropout": "token_dropout",
        "mask_token_id": "mask_token_id",
    },
    "computed": Computed(frozenset({"rope_theta"}), _read, _write),
    "in_weights": {"rope_frequencies": read_frequencies},
    "reorders": True,  # it scales queries ahead of rotation
    "fixed": {
        **{"is_causal": False, "norm_type": "layernorm", "mlp_gated": False, "hidden_act": "gelu"},
        **{"attention_bias": True, "mlp_bias": True, "float32_rope": True},
        **{"lm_head_bias": True, "lm_head_transform": True},
    },
    "ignored": frozenset({"classifier_dropout", "esmfold_config", "hidden_act", "hidden_dropout_prob", "vocab_list"}),
    "required": {
        "position_embedding_type": "rotary",
        **dict.fromkeys(("emb_layer_norm_before", "is_folding_model", "is_decoder", "add_cross_attention"), False),
    },
    "because": {"position_embedding_type": "it is ESM-1, with learned positions, and Nexus has rotary ones only"},
    "weights": {
        **renamed(
            {
                "esm.embeddings.word_embeddings.weight": "model.embed_tokens.weight",
                "lm_head.decoder.weight": "lm_head.weight",
                "lm_head.bias": "lm_head.bias",
                **{f"{name}.{kind}": f"{to}.{kind}" for name, to in _MODULES.items() for kind in _OLD_KINDS},
                **{
                    f"{name}.{old}": f"{to}.{kind}"
                    for name, to in _MODULES.items()
                    for kind, old in _OLD_KINDS.items()
                    if name.endswith(".LayerNorm")
                },
            }
        ),
        FREQUENCIES: from_config(written_frequencies),
        OLD_FREQUENCIES.format("*"): LEFT_BEHIND,
        # a regression from attention maps to contacts, and what old checkpoints saved
        "esm.contact_head.regression.weight": LEFT_BEHIND,
        "esm.contact_head.regression.bias": LEFT_BEHIND,
        "esm.embeddings.position_ids": LEFT_BEHIND,
        "esm.embeddings.position_embeddings.weight": LEFT_BEHIND,
    },
}
