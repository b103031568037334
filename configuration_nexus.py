# Copyright 2026 The Nexus Transformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Nexus models: a Llama-style decoder whose queries and keys are themselves attention outputs."""

import transformers

# The oldest release that can run this file, and the newest minor release that the tests have passed with.
TESTED_TRANSFORMERS = ("5.16.1", "5.24")


def release(version: str) -> tuple[int, ...]:
    """ "5.24.0.dev0" -> (5, 24)."""
    return tuple(int(part) for part in version.split(".")[:2])


if release(transformers.__version__) < release(TESTED_TRANSFORMERS[0]):
    raise ImportError(
        f"Nexus models need transformers {TESTED_TRANSFORMERS[0]} or newer, and {transformers.__version__} is "
        "installed: pip install --upgrade transformers"
    )

import copy  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from dataclasses import fields  # noqa: E402
from difflib import get_close_matches  # noqa: E402
from functools import lru_cache  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers.activations import ACT2FN  # noqa: E402
from transformers.configuration_utils import PreTrainedConfig  # noqa: E402
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402
from transformers.utils import logging  # noqa: E402

logger = logging.get_logger(__name__)

ATTENTION_TP_PLAN = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise",
}
QK_NORM_TP_PLAN = {  # each process has the gradient of its own heads only
    "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
    "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
}
# A norm over all heads needs them all: every process gathers the projections and attends with all heads, as in OLMo 2.
QK_NORM_ACROSS_HEADS_TP_PLAN = {
    "layers.*.self_attn.q_proj": "colwise_gather_output",
    "layers.*.self_attn.k_proj": "colwise_gather_output",
    "layers.*.self_attn.v_proj": "colwise_gather_output",
    "layers.*.self_attn.o_proj": "rowwise_split_input",
}
QK_NORM_TP_PLANS = {False: {}, True: QK_NORM_TP_PLAN, "across_heads": QK_NORM_ACROSS_HEADS_TP_PLAN}

BRANCHES = ("query", "key", "value")
MOST_LEVELS = 100_000


class AttentionCall(NamedTuple):
    """One scaled-dot-product attention of a layer."""

    name: str  # of its module in `self_attn`
    level: int  # 1 to m: level m is the layer's own attention, `outer`; those below it are inner levels
    projects: set[str]  # which of BRANCHES it projects anew; the rest it takes from the calls before it
    stores: set[str]  # what it keeps in its cache slot: {"key", "value"}, {"key"} or nothing
    num_query_heads: int
    num_key_value_heads: int
    slot: int = -1  # of the cache; a call that stores nothing attends to the slot of the call before it
    window: int | None = None  # how many tokens it attends to, the token itself included; None: all
    mask: str = "full_attention"  # which mask it takes


@strict
class NexusConfig(PreTrainedConfig):
    r"""
    Shape and switches of a Nexus model (*Nexus: Higher-Order Attention*, arXiv 2512.03377). The defaults are the width
    and depth of SmolLM2-135M, with the first layer nested once.

    Args:
        attention_order (`int` or `list[int]`, *optional*):
            The order m of each layer's attention: 1 is standard attention; m has m - 1 inner levels, whose output
            replaces the layer's input where queries and keys come from. A list gives one order per layer; by default
            it is `[2, 1, 1, ...]`; the paper nests every layer, `2`. May be overridden at load:
            `from_pretrained(..., attention_order=1)`.
        refine_query (`bool`, defaults to `True`): Queries are projected from the output of the inner level.
        refine_key (`bool`, defaults to `True`):
            Keys are projected from it. If off, "shared" attention needs no more cache than standard attention.
        refine_value (`bool`, defaults to `False`):
            The last level's values come from the inner level too (the paper's Nexus-QKV). Not with "self".
        inner_attention (`str`, defaults to `"shared"`):
            What an inner level is. `"shared"` (Eq. 12): attention over the tokens with the layer's own W_Q, W_K, W_V.
            `"separate"` (Table 2, "Shared: No"): for each refined projection one attention with weights of its own;
            order 2 at most. `"self"` (Eq. 7 to 9): queries attend to queries and keys to keys, without any weights.
        inner_output_projection (`bool`, defaults to `False`):
            Multiply the inner output by W_O before it is projected again: by the layer's own if "shared", by one more
            matrix if "separate". Not in the paper. Needed where the heads are not as wide as the model,
            `num_attention_heads * head_dim != hidden_size`. Not with "self".
        inner_scale (`bool`, defaults to `True`):
            Rescale every inner output, per token and without parameters, to the root mean square of what it replaces.
            Not in the paper.
        inner_gate (`bool`, defaults to `False`):
            Each inner level and branch has a learned scalar g, which blends what is refined (0) and what it is refined
            to (1). Off means g = 1, the paper. Conversion of a pretrained checkpoint turns it on and starts at 0.
        inner_gate_init (`float`, defaults to 0.0): Value that newly created gates start from, usually in [0, 1].
        inner_window (`int`, *optional*):
            Inner levels attend to the last `inner_window` tokens only, the token itself included, so that nesting costs
            a constant per token in time and cache, whatever the length. In layers with a `sliding_window` the smaller
            of the two holds. By default inner levels see as far as the layer does, as in the paper.
        is_causal (`bool`, defaults to `True`):
            A token sees itself and those before it. If off, all levels see the tokens on both sides, as in EuroBERT: an
            encoder, without a cache. Then a window of w is Transformers' two-sided one: token i sees token j if
            |i - j| <= w, so up to 2w + 1 tokens.
        vocab_size (`int`, defaults to 49152): Rows of the embedding, and logits per token.
        hidden_size (`int`, defaults to 576): Width of the residual stream.
        intermediate_size (`int`, defaults to 1536): Width inside the feed-forward block.
        num_layers (`int`, defaults to 30):
            Decoder layers. `num_hidden_layers` is derived and counts *cache slots* (as a rule one per attention call),
            because every cache class of Transformers sizes itself by that name.
        num_attention_heads (`int`, defaults to 9): Query heads.
        num_key_value_heads (`int`, *optional*): Key/value heads, a divisor of the query heads; by default as many.
        head_dim (`int`, *optional*): Size of one head, by default `hidden_size // num_attention_heads`.
        hidden_act (`str`, defaults to `"silu"`): Activation of the feed-forward block, a key of Transformers' `ACT2FN`.
        mlp_gated (`bool`, defaults to `True`):
            Feed-forward down(act(gate(x)) * up(x)), as in Llama; if off down(act(up(x))), as in GPT-NeoX.
        max_position_embeddings (`int`, defaults to 8192): Longest sequence the model is meant for.
        initializer_range (`float`, defaults to 0.02): Standard deviation of freshly initialised weights.
        norm_type (`str`, defaults to `"rmsnorm"`):
            Norm of the residual stream, `"rmsnorm"`, `"zero_centered_rmsnorm"` or `"layernorm"`. Zero-centered: the
            factor is 1 + weight, and all is computed in float32, that of queries and keys too, as in Gemma 3.
        norm_position (`str`, defaults to `"pre"`):
            `"pre"`: attention and feed-forward read the normalised residual stream. `"post"`: they read it as it is,
            and what they add to it is normalised, as in OLMo 2. `"both"`: both, as in Gemma 3.
        rms_norm_eps (`float`, defaults to 1e-5): Epsilon of the norms of either type.
        parallel_residual (`bool`, defaults to `False`):
            Attention and feed-forward read the same residual stream and are added together, as in GPT-NeoX.
        embedding_multiplier (`float`, defaults to 1.0):
            Factor of the embeddings, `inputs_embeds` too, rounded to their dtype.
        residual_multiplier (`float`, defaults to 1.0):
            Factor of what attention and feed-forward add to the residual stream.
        attention_multiplier (`float`, *optional*):
            Factor of the products of queries and keys, on every level, by default `head_dim ** -0.5`.
        logits_scaling (`float`, defaults to 1.0): The logits are divided by it.
        use_cache (`bool`, defaults to `True`): Return a KV cache by default.
        pad_token_id, bos_token_id, eos_token_id: Special tokens (defaults `None`, 1, 2).
        tie_word_embeddings (`bool`, defaults to `True`): The output projection is the embedding matrix.
        rope_parameters (`dict`, *optional*):
            Rotary embedding: `rope_type`, `rope_theta` (default 10000) and what the type needs; with
            `partial_rotary_factor` only that part of each head is rotated. `rope_theta=` and `rope_scaling=` keyword
            arguments are folded into it.
        sliding_rope_parameters (`dict`, *optional*):
            Rotary embedding of the layers with a `sliding_window`, on every level, by default that of the others.
        rope_frequencies (`list[float]`, *optional*):
            The frequencies of rotary embedding themselves, one for two rows of a head, where they are not those that
            `rope_theta` gives. ESM-2 was trained with rounded ones.
        layers_without_rope (`list[int]`, *optional*):
            Layers that do not rotate queries and keys, on any level, counted from 0.
        attention_bias (`bool`, defaults to `False`): Biases on the query, key and value projections.
        attention_out_bias (`bool`, *optional*): Bias on the output projection, by default as `attention_bias`.
        qk_norm (`bool` or `str`, defaults to `False`):
            RMS norm of queries and keys before rotation: `True` of every head by itself, as in Qwen3; `"across_heads"`
            of all heads of a token together, as in OLMo 2.
        float32_norm (`bool`, defaults to `False`):
            Weights of `"rmsnorm"` are applied in float32 and the result rounded, as in OLMo 2; if off, in the dtype of
            the model, as in Llama. Without effect in float32.
        float32_rope (`bool`, defaults to `False`): Likewise queries and keys are rotated in float32.
        sliding_window (`int`, *optional*): Tokens that a token attends to, itself included, in windowed layers.
        sliding_layers (`list[int]`, *optional*): The windowed layers, counted from 0; all if only the window is given.
        attention_dropout (`float`, defaults to 0.0): Dropout on attention weights while training.
        mlp_bias (`bool`, defaults to `False`): Biases in the feed-forward block.
        classifier_dropout (`float`, defaults to 0.1): Dropout before the token-classification head while training.
        classifier_pooling (`str`, *optional*):
            What the sequence-classification head reads: `"last"`, the last token that is not padding, `"first"` or
            `"mean"`. By default `"last"`, in encoders `"mean"`.
        lm_head_bias (`bool`, defaults to `False`): The logits of a language model have a bias.
        lm_head_transform (`bool`, defaults to `False`):
            Logits of `NexusForMaskedLM` are made of what a dense layer, GELU and LayerNorm make of the last hidden
            states, as in ESM-2.
        mask_token_id (`int`, *optional*): The token that stands for a masked one.
        token_dropout (`bool`, defaults to `False`):
            As in ESM-2, embeddings of `mask_token_id` are 0, and the others of its sequence are scaled up, as if
            masking were dropout. Without effect on `inputs_embeds`.

    Raises:
        `StrictDataclassError` (of huggingface_hub): a value that no Nexus model can have, or of the wrong type; the
            message names the field, the value and the mend. A value set later raises when a model is built.

    Example:
        >>> from nexus_transformers import NexusConfig, NexusForCausalLM
        >>> config = NexusConfig(num_layers=4)
        >>> config.attention_order
        [2, 1, 1, 1]
        >>> config.num_hidden_layers  # cache slots: two for the nested layer, one for each of the others
        5
        >>> [call.name for call in config.attention_calls()[0]]
        ['inner_1', 'outer']
    """

    model_type = "nexus"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    base_model_tp_plan = {
        **ATTENTION_TP_PLAN,
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    # What makes it Nexus
    attention_order: int | list[int] | tuple[int, ...] | None = None
    refine_query: bool = True
    refine_key: bool = True
    refine_value: bool = False
    inner_attention: str = "shared"
    inner_output_projection: bool = False
    inner_scale: bool = True
    inner_gate: bool = False
    inner_gate_init: float | int = 0.0
    inner_window: int | None = None

    # The decoder, or encoder, around it
    is_causal: bool = True
    vocab_size: int = 49152
    hidden_size: int = 576
    intermediate_size: int = 1536
    num_layers: int = 30
    num_attention_heads: int = 9
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    mlp_gated: bool = True
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    norm_type: str = "rmsnorm"
    norm_position: str = "pre"
    rms_norm_eps: float = 1e-5
    parallel_residual: bool = False
    embedding_multiplier: float | int = 1.0
    residual_multiplier: float | int = 1.0
    attention_multiplier: float | int | None = None
    logits_scaling: float | int = 1.0
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | tuple[int, ...] | None = 2
    tie_word_embeddings: bool = True
    rope_parameters: dict | None = None
    sliding_rope_parameters: dict | None = None
    rope_frequencies: list[float | int] | tuple[float | int, ...] | None = None
    layers_without_rope: list[int] | tuple[int, ...] | None = None
    attention_bias: bool = False
    attention_out_bias: bool | None = None
    qk_norm: bool | str = False
    float32_norm: bool = False
    float32_rope: bool = False
    sliding_window: int | None = None
    sliding_layers: list[int] | tuple[int, ...] | None = None
    attention_dropout: float | int = 0.0
    mlp_bias: bool = False
    classifier_dropout: float | int = 0.1
    classifier_pooling: str | None = None
    lm_head_bias: bool = False
    lm_head_transform: bool = False
    mask_token_id: int | None = None
    token_dropout: bool = False

    def __post_init__(self, **kwargs):
        refuse_unknown_fields(kwargs)
        refuse_endless(self.num_layers, self.attention_order)
        for name in ("attention_order", "sliding_layers", "layers_without_rope", "rope_frequencies", "eos_token_id"):
            if isinstance(getattr(self, name), tuple):
                setattr(self, name, list(getattr(self, name)))  # as config.json has it
        if self.attention_order is None:
            self.attention_order = ([2] + [1] * (self.num_layers - 1))[: self.num_layers]
        if self.head_dim is None and self.num_attention_heads > 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.attention_out_bias is None:
            self.attention_out_bias = self.attention_bias
        self.base_model_tp_plan = self.base_model_tp_plan | self.attention_tp_plan()
        # A folder that `save_pretrained` writes must load through every Auto class, not only the one that saved it, and
        # with its own code, wherever it came from ("user/name--modeling_nexus.…"). A user's own classes stay.
        said = kwargs.get("auto_map") or {}
        others = {name: each for name, each in said.items() if str(each).split("--")[-1] not in AUTO_MAP.values()}
        kwargs["auto_map"] = AUTO_MAP | others
        super().__post_init__(**kwargs)

    @property
    def layer_orders(self) -> list[int]:
        """The attention order of each decoder layer, `num_layers` entries."""
        return self.plan().layer_orders

    def refined(self, order: int, level: int) -> list[str]:
        """The branches that an inner level of a layer of this order refines: values in the last one only."""
        return self.plan().refined(order, level)

    @property
    def windowed_layers(self) -> set[int]:
        """The layers with a window of their own."""
        return self.plan().windowed_layers

    @property
    def layer_ropes(self) -> list[str | None]:
        """Of each decoder layer: "full" (`rope_parameters`), "sliding" (`sliding_rope_parameters`) or None."""
        windowed = self.windowed_layers if self.sliding_rope_parameters else ()
        ropes: list[str | None] = ["sliding" if layer in windowed else "full" for layer in range(self.num_layers)]
        for layer in self.layers_without_rope or ():
            ropes[layer] = None
        return ropes

    @property
    def logit_scale(self) -> float:
        """1 / `logits_scaling`, under the name by which vLLM reads it."""
        return 1 / self.logits_scaling

    def plan(self) -> "Plan":
        fields = vars(self)  # what `self.` costs in a PreTrainedConfig adds up: caches ask for it once per slot
        values = (fields[name] for name in Plan._fields)
        return Plan(*(tuple(value) if isinstance(value, list) else value for value in values))

    def attention_calls(self) -> tuple[tuple[AttentionCall, ...], ...]:
        """The attention calls of each decoder layer, in the order in which it makes them."""
        if self.inner_attention not in CALLS:
            raise ValueError(f"inner_attention={self.inner_attention!r}: choose 'shared', 'separate' or 'self'.")
        return attention_calls(self.plan())

    @property
    def num_hidden_layers(self) -> int:
        """Cache slots of the whole model. The number of decoder layers is `num_layers`."""
        return len(self.layer_types)

    @property
    def layer_types(self) -> list[str]:
        """The kind of each slot of the KV cache, by which cache classes and masks are chosen."""
        calls = [call for layer in self.attention_calls() for call in layer if call.stores]
        return ["full_attention" if call.window is None else "sliding_attention" for call in calls]

    def attention_tp_plan(self) -> dict[str, str]:
        """Rules for what there is only: Transformers warns of rules that apply to nothing."""
        plan = ATTENTION_TP_PLAN | QK_NORM_TP_PLANS.get(self.qk_norm, {})
        orders = self.layer_orders
        if None in orders or max(orders, default=1) == 1:
            return plan
        if self.inner_attention == "separate":
            inner = {name: rule for name, rule in plan.items() if self.inner_output_projection or "o_proj" not in name}
            for branch in self.refined(order=2, level=1):
                plan |= {name.replace("self_attn", f"self_attn.inner_{branch}"): rule for name, rule in inner.items()}
        return plan

    @num_hidden_layers.setter
    def num_hidden_layers(self, value):
        raise ValueError(NUM_HIDDEN_LAYERS_IS_DERIVED.format(value=value))

    def validate_architecture(self):
        """Called by the constructor, by `save_pretrained` and when a model is built."""
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1.")
        several = isinstance(self.attention_order, list | tuple)
        orders = self.attention_order if several else [self.attention_order]
        if any(order is None or isinstance(order, bool) or order < 1 for order in orders):
            raise ValueError(f"attention_order={self.attention_order}: every order must be an integer of at least 1.")
        if several and len(self.attention_order) != self.num_layers:
            raise ValueError(
                f"attention_order={self.attention_order} has {len(self.attention_order)} entries, but "
                f"num_layers={self.num_layers}; give one order per layer, or a single integer for all."
            )
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} must divide "
                f"num_attention_heads={self.num_attention_heads}."
            )
        for name in ("attention_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must lie between 0 and 1.")
        if self.norm_type not in ("rmsnorm", "zero_centered_rmsnorm", "layernorm"):
            raise ValueError(f"norm_type={self.norm_type!r}: choose 'rmsnorm', 'zero_centered_rmsnorm' or 'layernorm'.")
        if self.norm_position not in ("pre", "post", "both"):
            raise ValueError(f"norm_position={self.norm_position!r}: choose 'pre', 'post' or 'both'.")
        if self.parallel_residual and (self.norm_position != "pre" or self.residual_multiplier != 1):
            raise ValueError(
                "parallel_residual=True needs norm_position='pre' and residual_multiplier=1: set one of them otherwise."
            )
        for name in ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value}: must be a positive number.")
        if self.qk_norm not in QK_NORM_TP_PLANS:
            raise ValueError(f"qk_norm={self.qk_norm!r}: choose False, True or 'across_heads'.")
        least = 2 if self.is_causal else 1  # of 1, caches would keep every token
        for name in ("sliding_window", "inner_window"):
            if (window := getattr(self, name)) is not None and not least <= window < 2**62:  # masks add positions to it
                raise ValueError(f"{name}={window}: must be at least {least} and below 2**62, or None for no window.")
        if not abs(self.inner_gate_init) < float("inf"):  # NaN is not, either
            raise ValueError(f"inner_gate_init={self.inner_gate_init}: must be a finite number.")
        self.settle_inner_window()
        if self.sliding_layers is not None and (
            self.sliding_window is None or not set(self.sliding_layers) <= set(range(self.num_layers))
        ):
            raise ValueError(
                f"sliding_layers={self.sliding_layers}: needs sliding_window, and layers of 0 to {self.num_layers - 1}."
            )
        if self.classifier_pooling not in (None, "last", "first", "mean"):
            raise ValueError(f"classifier_pooling={self.classifier_pooling!r}: choose 'last', 'first' or 'mean'.")
        self.check_encoder()
        if "full_attention" in self.rope_parameters:
            raise ValueError(
                "rope_parameters has settings for each kind of layer: give those of layers with a window as "
                "sliding_rope_parameters, the others as rope_parameters."
            )
        self.check_positions()
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act={self.hidden_act!r} is unknown; choose one of {', '.join(ACT2FN)}.")
        if self.head_dim < 1 or self.head_dim % 2 != 0:
            raise ValueError(f"head_dim={self.head_dim}: rotary embedding needs an even, positive head size.")
        self.check_inner_attention(max(orders))

    def __setattr__(self, name: str, value: Any):
        super().__setattr__(name, value)
        if name == "sliding_window" and self.__dict__.pop("_implied_window", None) is not None:
            self.sliding_layers = None  # set since, as at load: the window of all layers

    def to_dict(self) -> dict[str, Any]:
        """As always, without the `sliding_window` that `inner_window` implies: another one may be given at load."""
        fields = super().to_dict()
        if fields.pop("_implied_window", None) is not None and self.sliding_layers == []:
            fields |= {"sliding_window": None, "sliding_layers": None}
        return fields

    def settle_inner_window(self):
        """Caches read the length of all windowed slots from `sliding_window`. Without layers of its own, it is ours."""
        if self.sliding_window is None and self.sliding_layers:
            raise ValueError(f"sliding_layers={self.sliding_layers}: needs sliding_window.")
        if self.inner_window is None:
            return
        if self.sliding_window is None or self.sliding_layers == []:
            self.sliding_window, self.sliding_layers = self.inner_window, []
            self._implied_window = self.inner_window
        orders = enumerate(self.layer_orders)
        unlimited = [layer for layer, order in orders if order > 1 and layer not in self.windowed_layers]
        if unlimited and self.inner_window > self.sliding_window:
            raise ValueError(
                f"inner_window={self.inner_window} is more than sliding_window={self.sliding_window}, and the nested "
                f"layers {unlimited} have no window of their own: masks and caches of Transformers know one. Set "
                f"inner_window to {self.sliding_window} or less."
            )

    def check_positions(self):
        if not set(self.layers_without_rope or ()) <= set(range(self.num_layers)):
            raise ValueError(
                f"layers_without_rope={self.layers_without_rope}: must be layers of 0 to {self.num_layers - 1}."
            )
        self.check_rope_frequencies()
        if self.sliding_rope_parameters is None:
            return
        rope = self.sliding_rope_parameters
        defaults = {"rope_type": rope.get("type", "default"), "rope_theta": self.default_theta}
        rope = self.sliding_rope_parameters = defaults | rope
        if not self.windowed_layers:
            raise ValueError(
                f"sliding_rope_parameters={rope}: no layer has a sliding_window; set one, or leave it out."
            )
        known = [kind for kind in ("default", *ROPE_INIT_FUNCTIONS) if kind != "longrope"]
        if rope["rope_type"] not in known:
            raise ValueError(f"sliding_rope_parameters={rope}: rope_type must be one of {', '.join(known)}.")
        alone = copy.copy(self)
        alone.rope_parameters = dict(rope)
        try:
            alone.validate_rope()
        except KeyError as error:  # a type without what it needs
            raise ValueError(f"sliding_rope_parameters={rope}: {error.args[0]}.") from error

    def check_encoder(self):
        for name in ("lm_head_transform", "token_dropout"):
            if getattr(self, name) and self.is_causal:
                raise ValueError(f"{name}=True: only encoders have it; set is_causal=False, or turn it off.")
        if self.token_dropout and self.mask_token_id is None:
            raise ValueError("token_dropout=True: needs mask_token_id, the token that is masked with.")

    def check_rope_frequencies(self):
        if self.rope_frequencies is None:
            return
        rope, found = self.rope_parameters, len(self.rope_frequencies)
        if rope["rope_type"] != "default" or self.sliding_rope_parameters is not None:
            raise ValueError("rope_frequencies needs rope_type='default' and no sliding_rope_parameters: leave it out.")
        wanted = int(self.head_dim * rope.get("partial_rotary_factor", 1.0)) // 2
        if found != wanted or not all(0 <= each < float("inf") for each in self.rope_frequencies):
            raise ValueError(f"rope_frequencies has {found} numbers: must be {wanted}, finite and not negative.")

    def check_inner_attention(self, order: int):
        kind = self.inner_attention
        if kind == "self" and self.refine_value:
            raise ValueError("refine_value=True: inner_attention='self' refines queries and keys only; turn it off.")
        if kind == "self" and self.inner_output_projection:
            raise ValueError("inner_output_projection=True: inner_attention='self' has no projections; turn it off.")
        if order == 1:
            return
        if not (self.refine_query or self.refine_key or self.refine_value):
            raise ValueError(
                "refine_query, refine_key and refine_value are all off, which leaves nothing to nest: turn one on, or "
                "set attention_order=1."
            )
        if order > 2 and not (self.refine_query or self.refine_key):
            raise ValueError(
                f"attention_order={self.attention_order}: values are refined once. Turn on refine_query or refine_key, "
                "or set attention_order=2."
            )
        if kind == "separate" and order > 2:
            raise ValueError(
                f"attention_order={self.attention_order}: inner_attention='separate' is defined up to order 2; set "
                "attention_order=2 or inner_attention='shared'."
            )
        width = self.num_attention_heads * self.head_dim
        if kind != "self" and not self.inner_output_projection and width != self.hidden_size:
            raise ValueError(
                f"num_attention_heads * head_dim = {width}, but hidden_size={self.hidden_size}: an inner output as "
                "wide as the heads cannot be projected again. Set inner_output_projection=True."
            )


class Plan(NamedTuple):
    """The fields of a config that its attention calls depend on."""

    inner_attention: str
    attention_order: int | tuple[int, ...]
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    sliding_window: int | None
    sliding_layers: tuple[int, ...] | None
    inner_window: int | None
    refine_query: bool
    refine_key: bool
    refine_value: bool

    @property
    def layer_orders(self) -> list[int]:
        order = self.attention_order
        return [order] * self.num_layers if isinstance(order, int) else list(order)

    @property
    def windowed_layers(self) -> set[int]:
        if self.sliding_window is None:
            return set()
        return set(range(self.num_layers) if self.sliding_layers is None else self.sliding_layers)

    def refined(self, order: int, level: int) -> list[str]:
        flags = {"query": self.refine_query, "key": self.refine_key, "value": self.refine_value and level == order - 1}
        return [branch for branch in BRANCHES if flags[branch]]

    def call(self, name: str, level: int, projects: set[str], stores: set[str]) -> AttentionCall:
        return AttentionCall(name, level, projects, stores, self.num_attention_heads, self.num_key_value_heads)


@lru_cache(maxsize=64)
def attention_calls(plan: Plan) -> tuple[tuple[AttentionCall, ...], ...]:
    windowed = plan.windowed_layers
    layers, slot = [], -1
    for layer, order in enumerate(plan.layer_orders):
        own_window = plan.sliding_window if layer in windowed else None
        calls = []
        for call in CALLS[plan.inner_attention](plan, order):
            window, mask, stores = own_window, "sliding_attention" if own_window else "full_attention", call.stores
            if plan.inner_window is not None and call.level < order:
                window, mask = min(plan.inner_window, own_window or plan.inner_window), "inner_attention"
            elif plan.inner_window is not None and own_window is None:
                stores = {"key", "value"}  # the slots of the inner levels do not have the values of all tokens
            slot += bool(stores)
            calls.append(call._replace(slot=slot, window=window, mask=mask, stores=stores))
        layers.append(tuple(calls))
    return tuple(layers)


def shared_calls(plan: Plan, order: int) -> Iterator[AttentionCall]:
    for level in range(1, order + 1):
        projects = set(plan.refined(order, level - 1)) if level > 1 else set(BRANCHES)
        stores = projects - {"query"}
        if stores:
            stores.add("key")  # a slot needs keys
        yield plan.call("outer" if level == order else f"inner_{level}", level, projects, stores)


def separate_calls(plan: Plan, order: int) -> Iterator[AttentionCall]:
    everything = set(BRANCHES)
    for branch in plan.refined(order, level=1) if order > 1 else []:
        yield plan.call(f"inner_{branch}.attention", 1, everything, {"key", "value"})
    yield plan.call("outer", order, everything, {"key", "value"})


def self_calls(plan: Plan, order: int) -> Iterator[AttentionCall]:
    """An inner call attends to what it queries with, and mixes the same: its keys are its values."""
    for level in range(1, order):
        for branch in plan.refined(order, level):
            heads = plan.num_attention_heads if branch == "query" else plan.num_key_value_heads
            projects = {branch} if level == 1 else set()
            yield AttentionCall(f"inner_{branch}_{level}", level, projects, {"key"}, heads, heads)
    projects = set(BRANCHES) - set(plan.refined(order, level=1) if order > 1 else [])
    yield plan.call("outer", order, projects, {"key", "value"})


CALLS = {"shared": shared_calls, "separate": separate_calls, "self": self_calls}


NUM_HIDDEN_LAYERS_IS_DERIVED = (
    "num_hidden_layers={value}: NexusConfig takes the number of decoder layers as `num_layers`; `num_hidden_layers` is "
    "derived from it and counts the slots of the KV cache (one per attention call). What sets it to change the number "
    "of layers, such as PEFT's layer_replication and generate's assistant_early_exit, does not work with Nexus."
)


def warn_if_untested() -> None:
    newest = TESTED_TRANSFORMERS[1]
    if release(transformers.__version__) > release(newest):
        logger.warning_once(
            f"This Nexus model was tested with transformers {newest} and older, and {transformers.__version__} is "
            f"installed: compare outputs, or `pip install 'transformers<={newest}.99'`."
        )


def refuse_unknown_fields(arguments: dict) -> None:
    """
    Raises `ValueError` for an argument that is derived, or almost the name of a field. Others are kept as attributes,
    as by every config of Transformers: they may be notes of the user's, or fields of a later version.
    """
    if "num_hidden_layers" in arguments:
        raise ValueError(NUM_HIDDEN_LAYERS_IS_DERIVED.format(value=arguments["num_hidden_layers"]))
    if "layer_types" in arguments:
        raise ValueError("layer_types is derived, one entry per cache slot: set sliding_window and sliding_layers.")
    if "share_projections" in arguments:
        raise ValueError(
            "This is a model of Nexus 0.1 (its config has `share_projections`), which 0.2 cannot run: convert its "
            "source again, or load it with trust_remote_code=True where nexus-transformers is not installed."
        )
    if "float32_norm_and_rope" in arguments:
        raise ValueError("float32_norm_and_rope is two fields now: set float32_norm and float32_rope.")
    names = {field.name for field in fields(NexusConfig)}
    for name in arguments:
        if name in ("rope_theta", "rope_scaling") or hasattr(PreTrainedConfig, name):
            continue
        if nearest := get_close_matches(name, names, n=1, cutoff=0.9):
            raise ValueError(f"NexusConfig has no field {name!r}. Did you mean {nearest[0]!r}?")


def refuse_endless(num_layers: int, attention_order: int | list[int] | tuple[int, ...] | None) -> None:
    """Raises `ValueError` before all levels of all layers are counted one by one: a config.json may say a billion."""
    orders = attention_order if isinstance(attention_order, list | tuple) else [attention_order]
    most = max((order for order in orders if isinstance(order, int)), default=1)
    if max(most, num_layers, most * num_layers) > MOST_LEVELS:
        raise ValueError(
            f"num_layers={num_layers} and attention_order={most}: no model has more than {MOST_LEVELS} levels in all."
        )


AUTO_MAP = {
    "AutoConfig": "configuration_nexus.NexusConfig",
    "AutoModel": "modeling_nexus.NexusModel",
    "AutoModelForCausalLM": "modeling_nexus.NexusForCausalLM",
    "AutoModelForMaskedLM": "modeling_nexus.NexusForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_nexus.NexusForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_nexus.NexusForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_nexus.NexusForQuestionAnswering",
}

__all__ = ["NexusConfig"]
