# Copyright 2026 The Nexus Transformers authors. Licensed under the Apache License, Version 2.0.
"""
Nexus: a decoder-only language model with nested ("higher-order") attention, after arXiv 2512.03377.

In standard attention the query and key of a token are a linear map of that token alone. In Nexus they come from what an
*inner* attention gathered for that token, recursively. Order m = 1 is standard attention; m has m - 1 inner levels. By
default all levels use the same weights ("shared", the paper's Eq. 12):

    A_0      = X
    A_i+1    = Attend( A_i W_Q , A_i W_K , X W_V )                   i = 0 ... m-2, the inner levels
    Nexus(X) = Attend( A_m-1 W_Q , A_m-1 W_K , X W_V ) W_O

`NexusSharedAttention.forward` is this loop. `NexusSeparateAttention` has inner attentions with weights of their own
(Table 2), `NexusSelfAttention` has no weights at all in them (Eq. 7 to 9). Everything else here is a decoder in the
manner of Llama, with the switches that make it a Mistral, Qwen2, Qwen3, Phi-3, OLMo 2 or GPT-NeoX:
- causal attention, or with `is_causal=False` attention to both sides, with grouped keys/values and rotary positions on
  the queries and keys of every level
- inner scale: each inner output is brought to the RMS of what it replaces
- inner gate (optional): one scalar per layer, level and branch moves from the unrefined (0) to the refined (1)

Shapes in comments: B batch, T new tokens, S all tokens (cached and new), D hidden size, H heads, G key/value heads,
d head size.
"""

import copy
import functools

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    eager_attention_forward,
)
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_nexus import BRANCHES, AttentionCall, NexusConfig, warn_if_untested
from .inputs_nexus import (
    CACHE,
    attention_masks,
    can_store_keys_alone,
    in_blocks,
    is_updated_by_the_attention_function,
    mask_in_blocks,
    one_of,
    refuse_encoder,
    refuse_other_heads,
    refuse_other_slots,
    refuse_uneven_slots,
    refuse_unknown,
)


def is_gate(name: str) -> bool:
    """Whether a parameter is a gate, by its name in a model or a checkpoint."""
    return ".inner_norm." in name


# Trainer's label smoothing shifts the labels only of classes that this table names.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault("nexus", "NexusForCausalLM")


class NexusRMSNorm(LlamaRMSNorm):
    """y = w x / sqrt(mean(x^2) + eps), statistics in float32."""


class NexusFloat32RMSNorm(Olmo2RMSNorm):
    """The same, with w applied in float32 too: y is rounded once, at the end."""


class NexusZeroCenteredRMSNorm(Olmo2RMSNorm):
    """The same with 1 + w in place of w."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (x * (1.0 + self.weight.float())).to(hidden_states.dtype)


def rms_norm(config: NexusConfig, size: int) -> nn.Module:
    norm = NexusFloat32RMSNorm if config.float32_norm else NexusRMSNorm
    if config.norm_type == "zero_centered_rmsnorm":
        norm = NexusZeroCenteredRMSNorm
    return norm(size, eps=config.rms_norm_eps)


def residual_norm(config: NexusConfig) -> nn.Module:
    if config.norm_type == "layernorm":
        return nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps)
    return rms_norm(config, config.hidden_size)


class NexusRotaryEmbedding(LlamaRotaryEmbedding):
    """Cosines and sines of the positions, (B, T, r) each, r the rotated part of a head. All levels share them."""

    @staticmethod
    def compute_default_rope_parameters(config: NexusConfig, device=None, **kwargs) -> tuple[torch.Tensor, float]:
        dim = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
        if config.rope_frequencies is not None:
            return torch.tensor(config.rope_frequencies, dtype=torch.float, device=device), 1.0
        exponents = torch.arange(0, dim, 2, dtype=torch.float) / dim
        return (1.0 / (config.rope_parameters["rope_theta"] ** exponents)).to(device), 1.0


UNMASKED = 1 - 0.15 * 0.8  # share of the tokens that were not replaced by the mask when ESM-2 was trained


def token_dropout(embeddings: torch.Tensor, masked: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """
    ESM-2's: embeddings (B, T, D) of masked tokens (B, T) become 0, and the others are scaled up, as by dropout, to what
    they had in training. (ESM-2 also makes padding 0, which no token sees.)
    """
    is_padding_known = attention_mask is not None and attention_mask.dim() == 2
    tokens = attention_mask.sum(-1) if is_padding_known else embeddings.shape[1]
    seen = 1 - masked.sum(-1).float() / tokens
    embeddings = embeddings.masked_fill(masked.unsqueeze(-1), 0.0)
    return (embeddings * UNMASKED / seen[:, None, None]).to(embeddings.dtype)


class NexusMLP(nn.Module):
    def __init__(self, config: NexusConfig):
        super().__init__()
        self.gated = config.mlp_gated
        if self.gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.gated:
            return self.down_proj(self.act_fn(self.up_proj(hidden_states)))
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class NexusAttentionCall(nn.Module):
    """
    One scaled-dot-product attention: one level of one layer. It has no parameters, and is a module of its own so that
    caches, attention backends and serving engines see what every other model shows them, one attention per `layer_idx`.
    """

    def __init__(self, config: NexusConfig, call: AttentionCall):
        super().__init__()
        self.config = config
        self.take_place(call)
        self.num_key_value_groups = call.num_query_heads // call.num_key_value_heads
        self.scaling = config.head_dim**-0.5 if config.attention_multiplier is None else config.attention_multiplier
        self.attention_dropout = config.attention_dropout
        self.is_causal = config.is_causal

    def take_place(self, call: AttentionCall):
        self.layer_idx = call.slot
        self.stores = call.stores
        # of a two-sided window, attention functions take the first distance that is outside
        self.sliding_window = call.window and call.window + (not self.config.is_causal)
        self.mask = call.mask

    def forward(
        self,
        query: torch.Tensor,  # (B, H, T, d)
        key: torch.Tensor,  # (B, G, T, d)
        value: torch.Tensor,  # (B, G, T, d)
        attention_mask: torch.Tensor | tuple[torch.Tensor | None, torch.Tensor | None] | None,
        cache: Cache | None = None,
        attended: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, torch.Tensor]]:
        """
        Returns the output (B, T, H*d), the attention map (B, H, T, S) or None, and the keys and values (B, G, S, d)
        that were attended to. A call that does not store both takes those of the call before it as `attended`; without
        them its keys are its values. Of an inner level with a window the mask is a pair: as it is, and in blocks.
        """
        if is_updated_by_the_attention_function(cache):
            kwargs["cache"] = cache
        elif cache is not None:
            refuse_other_heads(cache, self.layer_idx, key.shape[1])
            if not self.stores:
                key, value = attended
            elif "value" not in self.stores and can_store_keys_alone(cache, self.layer_idx):
                key, _ = cache.update(key, key[..., :0], self.layer_idx)
                # as `update` returned them: a slot may be cropped, quantized or on another device
                value = key if attended is None else attended[1]
            else:
                key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)  # paged caches change kwargs

        batch, heads, length, head_dim = query.shape
        attended = key, value
        if isinstance(attention_mask, tuple):
            attention_mask, blocks = attention_mask
            # not for static slots, whose last key is not that of the last token until they are full
            if blocks is not None and (
                cache is None or key.shape[2] > getattr(cache.layers[self.layer_idx], "max_cache_len", 0)
            ):
                query, key, value = in_blocks(query, key, value, blocks.shape[2])
                attention_mask = blocks
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return attn_output.reshape(batch, -1, heads * head_dim)[:, :length], attn_weights, attended


class NexusInnerNorm(nn.Module):
    """
    Puts an inner output A in the place of X, which it refines. Per token (and in "self", per head):

        R = A * sqrt(mean(X^2) + eps) / sqrt(mean(A^2) + eps)         refined = lerp(X, R, g)

    The projections were learned (or pretrained) on X, so R has the scale of X; eps on both sides keeps all-zero rows
    (padding) finite, backwards too. g = 0 gives X bit for bit; g = 1, or no gate, gives R.

    The gates, one per level and branch, live here as parameters of shape (1,): FSDP2 rejects 0-d parameters,
    PEFT's `modules_to_save=["inner_norm"]` saves modules only, and Trainer decays no weight under a name in `_norm`.
    """

    eps = 1e-6

    def __init__(self, config: NexusConfig, order: int):
        super().__init__()
        self.scaled = config.inner_scale
        self.gated = config.inner_gate
        if self.gated:
            for level in range(1, order):
                for branch in config.refined(order, level):
                    self.register_parameter(f"{branch}_gate_{level}", nn.Parameter(torch.empty(1)))

    def forward(
        self, unrefined: torch.Tensor, inner: torch.Tensor, level: int, branches: list[str], mesh=None
    ) -> dict[str, torch.Tensor]:
        """
        X and A, (..., D) each, the inner level, from 1, and the branches it refines -> what each becomes. `mesh`: the
        processes of tensor parallelism, where each refines its own heads.
        """
        if self.scaled:
            inner = inner * (self.energy(unrefined) / self.energy(inner)).sqrt()
        inner = inner.to(unrefined.dtype)  # they differ under autocast
        if not self.gated:
            return dict.fromkeys(branches, inner)
        refined = {}
        for branch in branches:
            gate = getattr(self, f"{branch}_gate_{level}")
            gate = gate if mesh is None else with_summed_gradient(gate, mesh)
            refined[branch] = torch.lerp(unrefined, inner, gate.to(inner.dtype))  # exact at 0 and 1
        return refined

    def energy(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """D (mean(x^2) + eps), (..., D) -> (..., 1), at least float32. A norm needs no second tensor of its size."""
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        norm = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True, dtype=dtype)
        return norm.square() + self.eps * hidden_states.shape[-1]


def with_summed_gradient(parameter: torch.Tensor, mesh) -> torch.Tensor:
    """
    A parameter that every process applies to its own heads. (The rule that Transformers has for this, which sums what
    is in `.grad`, is wrong when gradients are accumulated, and where a module is called twice before 5.24.)
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate

    replicated = DTensor.from_local(parameter, mesh, [Replicate()], run_check=False)
    return replicated.to_local(grad_placements=[Partial()])


PositionEmbeddings = tuple[torch.Tensor, torch.Tensor] | None  # cos and sin, (B, T, 1, r) each; None: no positions


class NexusProjections(nn.Module):
    """
    W_Q, W_K, W_V and, unless `output` is off, W_O under the names that every tool knows. Queries, keys, values:
    (B, T, D) -> (B, *, T, d).
    """

    def __init__(self, config: NexusConfig, output: bool = True):
        super().__init__()
        self.head_dim = config.head_dim
        self.query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        if output:
            self.o_proj = nn.Linear(self.query_size, config.hidden_size, bias=config.attention_out_bias)
        self.norm_across_heads = config.qk_norm == "across_heads"
        sizes = (self.query_size, key_value_size) if self.norm_across_heads else (config.head_dim, config.head_dim)
        self.q_norm, self.k_norm = (rms_norm(config, size) if config.qk_norm else nn.Identity() for size in sizes)
        self.inner_output_projection = config.inner_output_projection

    def query(self, source: torch.Tensor, position_embeddings: PositionEmbeddings) -> torch.Tensor:
        return self.placed(self.normed_heads(self.q_norm, self.q_proj(source)), position_embeddings)

    def key(self, source: torch.Tensor, position_embeddings: PositionEmbeddings) -> torch.Tensor:
        return self.placed(self.normed_heads(self.k_norm, self.k_proj(source)), position_embeddings)

    def placed(self, heads: torch.Tensor, position_embeddings: PositionEmbeddings) -> torch.Tensor:
        return (heads if position_embeddings is None else rotate(heads, *position_embeddings)).transpose(1, 2)

    def normed_heads(self, norm: nn.Module, projected: torch.Tensor) -> torch.Tensor:
        return self.heads(norm(projected)) if self.norm_across_heads else norm(self.heads(projected))

    def value(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.heads(self.v_proj(hidden_states)).transpose(1, 2)

    def heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (-1, self.head_dim))

    def inner_output(self, attn_output: torch.Tensor) -> torch.Tensor:
        """The output of an inner level, (B, T, H*d), as wide as what the next level projects, (B, T, D)."""
        if self.inner_output_projection:
            return self.o_proj(attn_output)
        mesh = self.mesh(attn_output.shape[-1])
        if mesh is None:
            return attn_output
        from torch.distributed.tensor import DTensor, Replicate, Shard

        sharded = DTensor.from_local(attn_output, mesh, [Shard(-1)], run_check=False)
        return sharded.redistribute(placements=[Replicate()]).to_local()

    def mesh(self, width: int):
        """Under tensor parallelism, the processes that have the other query heads, if these are less than all."""
        return None if width == self.query_size else self.q_proj.weight.device_mesh


def for_all_heads(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of positions, (B, T, r) each, what `rotate` takes: the same for all heads and levels."""
    half = sin.shape[-1] // 2
    return cos.unsqueeze(2), torch.cat((-sin[..., :half], sin[..., half:]), dim=-1).unsqueeze(2)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """
    Rotary position embedding of the first r of d: (B, T, *, d) with cos and sin (B, T, 1, r). The first half of `sin`
    is negative (see `for_all_heads`), so that a roll brings each number its partner: Llama's result, bit for bit.
    """
    size = cos.shape[-1]
    if size < heads.shape[-1]:
        return torch.cat((rotate(heads[..., :size], cos, sin), heads[..., size:]), dim=-1)
    return (heads * cos + heads.roll(size // 2, dims=-1) * sin).to(heads.dtype)


class NexusAttention(NexusProjections):
    """
    The attention of one layer. Its last call, `outer`, is the layer's own attention; the ones before it are inner
    levels, which refine its queries, keys or values. Its subclasses are the three kinds of inner attention.

    `forward`: X (B, T, D), cos and sin (B, T, 1, r) each, the masks of the last call and of the others, the cache
    -> (B, T, D).
    """

    def __init__(self, config: NexusConfig, calls: list[AttentionCall]):
        super().__init__(config)
        self.config = config
        self.take_calls(calls)
        if self.order > 1:
            self.inner_norm = NexusInnerNorm(config, self.order)
        self.add_calls(config)

    def take_calls(self, calls: list[AttentionCall]):
        self.calls = calls
        self.order = calls[-1].level
        # the branches that each inner level refines
        self.refined = {level: self.config.refined(self.order, level) for level in range(1, self.order)}

    def add_calls(self, config: NexusConfig):
        # One integer per module path at most: serving engines read the decoder layer's number from it.
        for call in self.calls:
            self.add_module(call.name, NexusAttentionCall(config, call))


class NexusSharedAttention(NexusAttention):
    """Every level projects with the layer's own weights (Eq. 12)."""

    def forward(
        self, hidden_states, position_embeddings, attention_mask=None, inner_mask=None, cache=None, **kwargs
    ) -> torch.Tensor:
        source = dict.fromkeys(BRANCHES, hidden_states)
        attended = None
        for call in self.calls:
            if "query" in call.projects:
                query = self.query(source["query"], position_embeddings)
            if "key" in call.projects:
                key = self.key(source["key"], position_embeddings)
            if "value" in call.projects:
                value = self.value(source["value"])
            attend, mask = getattr(self, call.name), inner_mask if call.level < self.order else attention_mask
            attn_output, _, attended = attend(query, key, value, mask, cache, attended, **kwargs)
            if call.level < self.order:
                inner = self.inner_output(attn_output)
                source |= self.inner_norm(hidden_states, inner, call.level, self.refined[call.level])
        return self.o_proj(attn_output)


class NexusInnerAttention(NexusProjections):
    """One inner attention with weights of its own, (B, T, D) -> (B, T, D)."""

    def __init__(self, config: NexusConfig, call: AttentionCall):
        super().__init__(config, output=config.inner_output_projection)
        self.attention = NexusAttentionCall(config, call)

    def forward(self, hidden_states, position_embeddings, attention_mask=None, cache=None, **kwargs) -> torch.Tensor:
        query, key = self.query(hidden_states, position_embeddings), self.key(hidden_states, position_embeddings)
        attn_output, _, _ = self.attention(query, key, self.value(hidden_states), attention_mask, cache, **kwargs)
        return self.inner_output(attn_output)


class NexusSeparateAttention(NexusAttention):
    """Each refined projection has one inner attention of its own, `inner_query`, ... (Table 2, "Shared: No")."""

    def add_calls(self, config: NexusConfig):
        for call in self.calls[:-1]:
            self.add_module(call.name.split(".")[0], NexusInnerAttention(config, call))
        self.outer = NexusAttentionCall(config, self.calls[-1])

    def forward(
        self, hidden_states, position_embeddings, attention_mask=None, inner_mask=None, cache=None, **kwargs
    ) -> torch.Tensor:
        source = dict.fromkeys(BRANCHES, hidden_states)
        for branch in self.refined.get(1, []):
            inner_attention = getattr(self, f"inner_{branch}")
            inner = inner_attention(hidden_states, position_embeddings, inner_mask, cache, **kwargs)
            source |= self.inner_norm(hidden_states, inner, 1, [branch])
        query = self.query(source["query"], position_embeddings)
        key = self.key(source["key"], position_embeddings)
        attn_output, _, _ = self.outer(query, key, self.value(source["value"]), attention_mask, cache, **kwargs)
        return self.o_proj(attn_output)


class NexusSelfAttention(NexusAttention):
    """Head by head, queries attend to queries and keys to keys, after rotation and without weights (Eq. 7 to 9)."""

    def forward(
        self, hidden_states, position_embeddings, attention_mask=None, inner_mask=None, cache=None, **kwargs
    ) -> torch.Tensor:
        heads = {
            "query": self.query(hidden_states, position_embeddings),
            "key": self.key(hidden_states, position_embeddings),
        }
        mesh = self.mesh(heads["query"].shape[1] * self.head_dim)
        for level, branches in self.refined.items():
            for branch in branches:
                attend, x = getattr(self, f"inner_{branch}_{level}"), heads[branch]
                attn_output, _, _ = attend(x, x, x, inner_mask, cache, **kwargs)
                inner = self.heads(attn_output).transpose(1, 2)
                heads |= self.inner_norm(x, inner, level, [branch], mesh)
        value = self.value(hidden_states)
        attn_output, _, _ = self.outer(heads["query"], heads["key"], value, attention_mask, cache, **kwargs)
        return self.o_proj(attn_output)


ATTENTIONS = {"shared": NexusSharedAttention, "separate": NexusSeparateAttention, "self": NexusSelfAttention}


class NexusDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: NexusConfig, calls: list[AttentionCall], rope: str | None = "full"):
        super().__init__()
        self.take_calls(calls)
        self.rope = rope  # which position embeddings it takes
        self.self_attn = ATTENTIONS[config.inner_attention](config, calls)
        self.mlp = NexusMLP(config)
        self.norm_position = config.norm_position
        if self.norm_position != "post":
            self.input_layernorm = residual_norm(config)
        self.post_attention_layernorm = residual_norm(config)  # after attention; "pre": ahead of the feed-forward block
        if self.norm_position == "both":
            self.pre_feedforward_layernorm = residual_norm(config)
        if self.norm_position != "pre":
            self.post_feedforward_layernorm = residual_norm(config)
        self.parallel_residual = config.parallel_residual
        self.residual_multiplier = config.residual_multiplier

    def take_calls(self, calls: list[AttentionCall]):
        self.first_slot = calls[0].slot
        self.masks = calls[-1].mask, calls[0].mask  # which masks it takes, for itself and for its inner levels

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: PositionEmbeddings,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inner_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        residual = hidden_states
        if self.norm_position != "post":
            hidden_states = self.input_layernorm(hidden_states)
        hidden_states = self.self_attn(hidden_states, position_embeddings, attention_mask, inner_mask, cache, **kwargs)
        if self.parallel_residual:
            # in the order in which GPT-NeoX adds, which is not the same in floating point
            return self.mlp(self.post_attention_layernorm(residual)) + hidden_states + residual
        if self.norm_position != "pre":
            hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.add(residual, hidden_states)

        residual = hidden_states
        if self.norm_position == "pre":
            hidden_states = self.post_attention_layernorm(hidden_states)
        elif self.norm_position == "both":
            hidden_states = self.pre_feedforward_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        if self.norm_position != "pre":
            hidden_states = self.post_feedforward_layernorm(hidden_states)
        return self.add(residual, hidden_states)

    def add(self, residual: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.residual_multiplier != 1:
            hidden_states = hidden_states * self.residual_multiplier
        return residual + hidden_states


def any_open(gates: list[nn.Parameter]) -> bool:
    """Whether a gate is not exactly 0. FSDP2 leaves all processes but one an empty part of it."""
    whole = [gate.full_tensor() if hasattr(gate, "full_tensor") else gate for gate in gates]
    return any(gate.is_meta for gate in whole) or bool(torch.cat(whole).any())


# Set after construction: before 5.19 OutputRecorder does not take this argument (nor does it need it).
_LAYER_RECORDER = OutputRecorder(NexusDecoderLayer)
_LAYER_RECORDER.num_hidden_layers_key = "num_layers"


class NexusPreTrainedModel(PreTrainedModel):
    config: NexusConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NexusDecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": _LAYER_RECORDER,
        "attentions": OutputRecorder(NexusAttentionCall, index=1),  # one map per attention call
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, NexusInnerNorm):
            for gate in module.parameters():
                init.constant_(gate, self.config.inner_gate_init)
        if isinstance(module, NexusZeroCenteredRMSNorm):
            init.zeros_(module.weight)

    def save_pretrained(self, *args, **kwargs):
        """As always. FSDP2 puts a class of its own over a model's, whose code is PyTorch's and not what to carry."""
        sharded = type(self)
        if sharded.__name__.startswith("FSDP"):
            own = sharded.__bases__[-1]
            sharded.__name__, sharded.__module__ = own.__name__, own.__module__
        skips = self.base_model.all_orders is not None
        self.restore_levels()
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            if skips:
                self.skip_closed_levels()

    @staticmethod
    def create_masks_for_generate(config: NexusConfig, **arguments) -> dict[str, torch.Tensor | None]:
        """The masks of every kind, which `generate` makes ahead of a compiled forward pass."""
        kinds = {call.mask for layer in config.attention_calls() for call in layer}
        names = ("inputs_embeds", "attention_mask", "position_ids", CACHE)
        return attention_masks(config, kinds, **{name: arguments.get(name) for name in names})

    def gates(self) -> dict[str, nn.Parameter]:
        """All gates by name, each of shape (1,); empty without `inner_gate` or at order 1."""
        # Under PEFT a module that is trained keeps its original beside it, out of use.
        named = self.named_parameters()
        return {name: gate for name, gate in named if is_gate(name) and ".original_module." not in name}

    def skip_closed_levels(self) -> list[int]:
        """
        Runs the layers whose gates are all exactly 0 at order 1: the same function, at the price of standard attention.
        `restore_levels`, `train` and `load_state_dict` undo it. The gates stay where they are, and a saved model is
        whole. If one is opened meanwhile, the next forward pass is an error (a compiled one does not look). Gates that
        are offloaded cannot be read, and count as open. A cache that was begun before does not fit any more.

        Returns these layers, counted from 0.
        """
        decoder = self.base_model
        decoder.restore_levels()
        if len(decoder.layers) != decoder.config.num_layers:
            raise ValueError("Layers were removed from this model: it cannot skip the closed levels of the others.")
        gates: dict[int, list[nn.Parameter]] = {}  # of each layer
        for name, gate in decoder.gates().items():
            gates.setdefault(int(name.split(".")[1]), []).append(gate)
        closed = [layer for layer, own in gates.items() if not any_open(own)]
        if closed:
            decoder.all_orders, orders = decoder.config.attention_order, decoder.config.layer_orders
            decoder.skipped_gates = [gate for layer in closed for gate in gates[layer]]
            decoder.run_at([1 if layer in closed else order for layer, order in enumerate(orders)])
        return closed

    def restore_levels(self) -> None:
        """Undoes `skip_closed_levels`."""
        decoder = self.base_model
        if decoder.all_orders is not None:
            decoder.run_at(decoder.all_orders)
            decoder.all_orders, decoder.skipped_gates = None, []

    def freeze_all_but_gates(self) -> "NexusPreTrainedModel":
        """Leaves only the gates trainable. Returns the model."""
        self.requires_grad_(False)
        for gate in self.gates().values():
            gate.requires_grad_(True)
        return self


class NexusModel(NexusPreTrainedModel):
    """The decoder without a head: token ids -> hidden states."""

    def __init__(self, config: NexusConfig):
        config.validate_architecture()  # fields may have been set since the config was made, e.g. the order at load
        warn_if_untested()
        if config._attn_implementation in ("vllm", "sglang"):
            refuse_encoder(config, "A serving engine")
            refuse_uneven_slots(config, "A serving engine")
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        layers = zip(config.attention_calls(), config.layer_ropes, strict=True)
        self.layers = nn.ModuleList([NexusDecoderLayer(config, calls, rope) for calls, rope in layers])
        self.norm = residual_norm(config)
        self.rotary_emb = NexusRotaryEmbedding(config)
        if config.sliding_rope_parameters is not None:
            sliding = copy.copy(config)
            sliding.rope_parameters = config.sliding_rope_parameters
            self.sliding_rotary_emb = NexusRotaryEmbedding(sliding)
        self.gradient_checkpointing = False
        self.num_slots = config.num_hidden_layers
        # Transformers changes `config.is_causal` while a forward pass is given `is_causal`, as by continuous batching.
        self.is_encoder = not config.is_causal
        # while closed levels are skipped: the model's own orders, and the gates that have to stay closed
        self.all_orders: int | list[int] | None = None
        self.skipped_gates: list[nn.Parameter] = []
        self.post_init()

    def run_at(self, orders: int | list[int]):
        """Runs the layers at these orders, none of which is above its own."""
        self.config.attention_order = orders
        self.num_slots = self.config.num_hidden_layers
        for layer, calls in zip(self.layers, self.config.attention_calls(), strict=True):
            layer.take_calls(calls)
            layer.self_attn.take_calls(calls)
            for call in calls:
                layer.self_attn.get_submodule(call.name).take_place(call)

    def train(self, mode: bool = True) -> "NexusModel":
        if mode:
            self.restore_levels()
        return super().train(mode)

    def _load_from_state_dict(self, *args):
        self.restore_levels()  # it may open gates
        super()._load_from_state_dict(*args)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Args (as for any decoder of Transformers):
            input_ids: (B, T); or inputs_embeds: (B, T, D). Exactly one of the two, else `ValueError`.
            attention_mask: (B, S), 1 for tokens and 0 for padding on either side; or a ready 4-D mask.
            position_ids: (B, T), by default counted on from the cache.
            cache, or past_key_values: any cache class of Transformers; by default a `DynamicCache` if `use_cache`.

        Raises `TypeError` for an unknown argument that holds a cache or tensors.
        """
        refuse_unknown(kwargs)
        cache = one_of(cache, past_key_values)
        # Of a cache that grows, where the last layers were removed, there are less than the config says.
        refuse_other_slots(cache, (self.num_slots, self.layers[-1].self_attn.outer.layer_idx + 1))
        if self.skipped_gates and not torch.compiler.is_compiling() and any_open(self.skipped_gates):
            raise ValueError("A gate was opened while its level is skipped: call `restore_levels()`, or close it.")
        if self.layers[0].first_slot != 0:
            raise ValueError("The first layer was removed, which the positions in the cache are counted by: keep it.")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
            if self.config.token_dropout:
                masked = input_ids == self.config.mask_token_id
                inputs_embeds = token_dropout(inputs_embeds, masked, attention_mask)
        if cache is not None and self.is_encoder:
            refuse_encoder(self.config, "A cache")
        if use_cache and cache is None and self.config.is_causal:
            cache = DynamicCache(config=self.config)
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            cache = None  # the backward pass runs every layer again, and would store its keys again
        if position_ids is None:
            past_length = cache.get_seq_length() if cache is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_length)[None]

        masks = attention_mask
        if isinstance(masks, dict):  # made already, by `generate` or continuous batching, which knows no inner mask
            masks = {"inner_attention": masks.get("sliding_attention")} | masks
        else:
            masks = attention_masks(
                self.config,
                {kind for layer in self.layers for kind in layer.masks},
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **{CACHE: None if is_updated_by_the_attention_function(cache) else cache},
            )
        if self.config.inner_window is not None:
            inner_mask = masks.get("inner_attention")
            masks["inner_attention"] = inner_mask, mask_in_blocks(inner_mask, self.config, inputs_embeds.shape[0])
        # cos and sin take the dtype of the first argument, of which nothing else is read
        dtype_like = inputs_embeds[..., :1].float() if self.config.float32_rope else inputs_embeds
        positions = {None: None, "full": for_all_heads(*self.rotary_emb(dtype_like, position_ids))}
        if self.config.sliding_rope_parameters is not None:
            positions["sliding"] = for_all_heads(*self.sliding_rotary_emb(dtype_like, position_ids))

        hidden_states = inputs_embeds
        if (multiplier := self.config.embedding_multiplier) != 1:
            hidden_states = hidden_states * hidden_states.new_full((), multiplier)  # rounded to its dtype
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_embeddings=positions[layer.rope],
                attention_mask=masks[layer.masks[0]],
                inner_mask=masks[layer.masks[1]],
                cache=cache,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **{CACHE: cache})


class NexusForCausalLM(NexusPreTrainedModel, GenerationMixin):
    """The decoder with a language-model head: token ids -> logits, loss and `generate`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: NexusConfig):
        refuse_encoder(config, "NexusForCausalLM")
        super().__init__(config)
        self.model = NexusModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    if CACHE != "cache":

        @functools.wraps(GenerationMixin.generate)
        def generate(self, *args, cache: Cache | None = None, past_key_values: Cache | None = None, **kwargs):
            cache = one_of(cache, past_key_values)
            if cache is not None:  # beam search without a cache takes None, too, for one
                kwargs["past_key_values"] = cache
            return super().generate(*args, **kwargs)

    # `generate` takes `inputs_embeds` only where it finds it in this signature
    def prepare_inputs_for_generation(
        self, input_ids, cache=None, inputs_embeds=None, past_key_values=None, **kwargs
    ) -> dict:
        """Drops the cache when LongRoPE goes over to its long frequencies: the keys in it were rotated by the short."""
        cache = one_of(cache, past_key_values)
        rope = self.config.rope_parameters
        if cache is not None and rope["rope_type"] == "longrope":
            if cache.get_seq_length() <= rope["original_max_position_embeddings"] < input_ids.shape[1]:
                cache, kwargs["next_sequence_length"] = None, None
        kwargs |= {CACHE: cache, "inputs_embeds": inputs_embeds}
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        if "prepare_inputs_for_generation" in vars(self):  # put there by PEFT's prompt tuning, for this name
            inputs["past_key_values"] = inputs.pop(CACHE, None)
        return inputs

    def init_continuous_batching(self, *args, **kwargs):
        """As always, or `ValueError` where the slots of the cache differ in their heads: a paged cache's do not."""
        refuse_uneven_slots(self.config, "Continuous batching")
        return super().init_continuous_batching(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """
        Args, besides those of `NexusModel.forward`:
            labels: (B, T), shifted inside; -100 is ignored. With labels the output has a `loss`.
            logits_to_keep: compute logits of the last n positions only (0: all), or of the positions in a 1-D tensor.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=one_of(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        if self.config.logits_scaling != 1:
            logits = logits / self.config.logits_scaling
        loss = None
        if labels is not None:
            # kwargs carry num_items_in_batch: without it gradient accumulation inflates the loss
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs[CACHE] if CACHE in outputs else None},
        )


class NexusLMHeadTransform(nn.Module):
    """What ESM-2 makes of the last hidden states, (B, T, D), ahead of the logits."""

    def __init__(self, config: NexusConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(nn.functional.gelu(self.dense(hidden_states)))


class NexusForMaskedLM(NexusPreTrainedModel):
    """The encoder with a language-model head: token ids, some of them masked, -> logits of what stands there."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: NexusConfig):
        if config.is_causal:
            raise ValueError("NexusForMaskedLM needs a model that sees both sides: set is_causal=False.")
        super().__init__(config)
        self.model = NexusModel(config)
        self.lm_head_transform = NexusLMHeadTransform(config) if config.lm_head_transform else nn.Identity()
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """`labels`: (B, T), what stands at each position; -100 is ignored. With labels the output has a `loss`."""
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **kwargs)
        logits = self.lm_head(self.lm_head_transform(outputs.last_hidden_state))
        if self.config.logits_scaling != 1:
            logits = logits / self.config.logits_scaling
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# The heads below are Transformers' own, forward passes included, but for what stands for a sequence. Their constructors
# are not used: they build the decoder through AutoModel, which does not know remote code.


class NexusForSequenceClassification(GenericForSequenceClassification, NexusPreTrainedModel):
    """Classifies a sequence, (B, T) -> (B, num_labels), by what `classifier_pooling` says."""

    def __init__(self, config: NexusConfig):
        NexusPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = NexusModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        kwargs |= {"position_ids": position_ids, "inputs_embeds": inputs_embeds, "use_cache": use_cache}
        kwargs[CACHE] = one_of(cache, past_key_values)
        pooling = self.config.classifier_pooling or ("last" if self.config.is_causal else "mean")
        if pooling == "last":  # as Transformers' own always does
            return super().forward(input_ids, attention_mask, labels=labels, **kwargs)
        outputs = self.model(input_ids, attention_mask, **kwargs)
        hidden_states = outputs.last_hidden_state
        tokens = hidden_states.new_ones(hidden_states.shape[:2]) if attention_mask is None else attention_mask
        if tokens.shape != hidden_states.shape[:2]:
            raise ValueError(f"classifier_pooling={pooling!r} needs an attention_mask of (B, T), which tells padding.")
        if pooling == "first":
            tokens = tokens * (tokens.cumsum(-1) == 1)
        pooled = (hidden_states * tokens[..., None]).sum(1) / tokens.sum(1, keepdim=True)
        logits = self.score(pooled.to(hidden_states.dtype))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class NexusForTokenClassification(GenericForTokenClassification, NexusPreTrainedModel):
    """Classifies every token, (B, T) -> (B, T, num_labels)."""

    def __init__(self, config: NexusConfig):
        NexusPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = NexusModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class NexusForQuestionAnswering(GenericForQuestionAnswering, NexusPreTrainedModel):
    """Scores every token as the start and as the end of the answer, (B, T) -> 2 times (B, T)."""

    def __init__(self, config: NexusConfig):
        NexusPreTrainedModel.__init__(self, config)
        self.model = NexusModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


__all__ = [
    "NexusForCausalLM",
    "NexusForMaskedLM",
    "NexusForQuestionAnswering",
    "NexusForSequenceClassification",
    "NexusForTokenClassification",
    "NexusModel",
    "NexusPreTrainedModel",
]
