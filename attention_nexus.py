# Copyright 2026 The Nexus Transformers authors. Licensed under the Apache License, Version 2.0.
"""
Nested attention, the part of a Nexus layer that is not Llama's.

By default all levels use the same weights ("shared", the paper's Eq. 12):

    A_0      = X
    A_i+1    = Attend( A_i W_Q , A_i W_K , X W_V )                   i = 0 ... m-2, the inner levels
    Nexus(X) = Attend( A_m-1 W_Q , A_m-1 W_K , X W_V ) W_O

`NexusSharedAttention.forward` is this loop. `NexusSeparateAttention` has inner attentions with weights of their own
(Table 2), `NexusSelfAttention` has no weights at all in them (Eq. 7 to 9).
- grouped keys and values, and rotary positions on the queries and keys of every level
- inner scale: each inner output is brought to the RMS of what it replaces
- inner gate (optional): one scalar per layer, level and branch moves from the unrefined (0) to the refined (1)

Shapes in comments: B batch, T new tokens, S all tokens (cached and new), D hidden size, H heads, G key/value heads,
d head size.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_nexus import BRANCHES, AttentionCall, NexusConfig
from .inputs_nexus import (
    can_store_keys_alone,
    in_blocks,
    is_updated_by_the_attention_function,
    refuse_other_heads,
)


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

    def move_loaded_gates(self, new: float):
        """
        Of a model that is loaded at a higher order, the gates stay next to the last level, and those of new levels come
        before them: with closed ones the function is what it was.
        """
        for branch in {name.split("_")[0] for name, _ in self.named_parameters()}:
            gates = [gate for name, gate in self.named_parameters() if name.startswith(f"{branch}_gate_")]
            loaded = [gate.clone() for gate in gates if getattr(gate, "_is_hf_initialized", False)]
            if 0 < len(loaded) < len(gates):
                for gate, value in zip(gates[-len(loaded) :], loaded, strict=True):
                    gate.copy_(value)
                for gate in gates[: -len(loaded)]:
                    gate.fill_(new)

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
