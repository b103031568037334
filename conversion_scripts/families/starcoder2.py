"""StarCoder2: LayerNorm, a feed-forward without a gate, one switch for all biases, a window in every layer."""

from .llama import ATTENTION, CONFIG, EMBEDDINGS, NORMS
from .rules import parameters, renamed, same_names, switch, without

MODEL_TYPE = "starcoder2"

_MLP = {"c_fc": "up_proj", "c_proj": "down_proj"}

RULES = {
    "models": "StarCoder2",
    "config": {
        **without(CONFIG, "rms_norm_eps"),
        "norm_epsilon": "rms_norm_eps",
        "sliding_window": "sliding_window",
    },
    "computed": switch("use_bias", "attention_bias", "mlp_bias"),
    "fixed": {"norm_type": "layernorm", "mlp_gated": False},
    "ignored": frozenset(
        """
        activation_function attention_softmax_in_fp32 embedding_dropout layer_norm_epsilon residual_dropout rms_norm_eps
        scale_attention_softmax_in_fp32 scale_attn_weights
        """.split()
    ),
    "required": {"mlp_type": "default", "norm_type": "layer_norm"},  # in config.json of the published checkpoints
    "weights": {
        **same_names(parameters(EMBEDDINGS, "weight") + parameters([*ATTENTION, *NORMS], "weight", "bias")),
        **renamed(
            {
                f"model.layers.*.mlp.{source}.{kind}": f"model.layers.*.mlp.{target}.{kind}"
                for source, target in _MLP.items()
                for kind in ("weight", "bias")
            }
        ),
    },
}
