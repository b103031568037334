# Copyright 2026 The Nexus Transformers authors. Licensed under the Apache License, Version 2.0.
"""
Nexus: a decoder-only language model with nested ("higher-order") attention, after arXiv 2512.03377.

In standard attention the query and key of a token are a linear map of that token alone. In Nexus they come from what an
*inner* attention gathered for that token, recursively. Order m = 1 is standard attention; m has m - 1 inner levels. The
attention of a layer, which does this, is in `attention_nexus.py`. This is the decoder around it, in the manner of
Llama, with the switches that make it a Mistral, Qwen3, Gemma 3, Granite, OLMo 2 or GPT-NeoX. With `is_causal=False` it
is an encoder, such as EuroBERT or ESM-2.

Shapes in comments: B batch, T new tokens, S all tokens (cached and new), D hidden size, r the rotated part of a head.
"""

import copy
import functools
from pathlib import Path

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.dynamic_module_utils import custom_object_save
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
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_nexus import (
    ATTENTIONS,
    NexusAttentionCall,
    NexusInnerNorm,
    NexusZeroCenteredRMSNorm,
    PositionEmbeddings,
    for_all_heads,
    rms_norm,
)
from .configuration_nexus import AttentionCall, NexusConfig, warn_if_untested
from .inputs_nexus import (
    CACHE,
    attention_masks,
    is_updated_by_the_attention_function,
    mask_in_blocks,
    one_of,
    refuse_encoder,
    refuse_other_slots,
    refuse_uneven_slots,
    refuse_unknown,
)

# Trainer's label smoothing shifts the labels only of classes that this table names.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault("nexus", "NexusForCausalLM")


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
    tokens = attention_mask.sum(-1).clamp(min=1) if is_padding_known else embeddings.shape[1]
    seen = 1 - masked.sum(-1).float() / tokens
    seen = seen.where(seen > 0, 1.0)  # where all is masked, nothing is left to scale
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


def in_use(norm: nn.Module) -> nn.Module:
    """Under PEFT's `modules_to_save` a module is several: the original, and a copy for each adapter."""
    copies = getattr(norm, "modules_to_save", None)
    if copies is None:
        return norm
    adapter = None if norm.disable_adapters else next(iter(norm.active_adapters), None)
    return copies[adapter] if adapter in copies else norm.original_module


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
            module.move_loaded_gates(self.config.inner_gate_init)
        if isinstance(module, NexusZeroCenteredRMSNorm):
            init.zeros_(module.weight)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """
        As always, with the code: of a subclass that of ours, too. FSDP2 puts a class of its own over a model's, whose
        code is PyTorch's and not what to carry.
        """
        sharded = type(self)
        if sharded.__name__.startswith("FSDP"):
            own = sharded.__bases__[-1]
            sharded.__name__, sharded.__module__ = own.__name__, own.__module__
        skips = self.base_model.all_orders is not None
        self.restore_levels()
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
            ours = next(each for each in type(self).__mro__ if each.__module__ == NexusPreTrainedModel.__module__)
            if ours is not type(self) and ours._auto_class is not None and Path(save_directory).is_dir():
                custom_object_save(ours, save_directory)
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
        """
        All gates by name, each of shape (1,); empty without `inner_gate` or at order 1. Under PEFT those of the active
        adapter.
        """
        used = {id(gate) for norm in self.base_model.inner_norms().values() for gate in in_use(norm).parameters()}
        return {name: gate for name, gate in self.named_parameters() if id(gate) in used}

    def skip_closed_levels(self) -> list[int]:
        """
        Runs the layers whose gates are all exactly 0 at order 1: the same function, at the price of standard attention.
        `restore_levels`, `train` and `load_state_dict` undo it. The gates stay where they are, and a saved model is
        whole. If one is opened meanwhile, the next forward pass is an error (a compiled one does not look). Gates that
        are offloaded cannot be read, and count as open. A cache that was begun before does not fit any more. The model
        has a config of its own from then on.

        Returns these layers, counted from 0. Raises `ValueError` in training mode.
        """
        if self.training:
            raise ValueError(
                "The model is in training mode, and skipped gates would not be trained: call eval() first."
            )
        decoder = self.base_model
        decoder.restore_levels()
        if len(decoder.layers) != decoder.config.num_layers:
            raise ValueError("Layers were removed from this model: it cannot skip the closed levels of the others.")
        # Under PEFT the gates of every adapter: which one is active may change unseen.
        gates = {layer: list(norm.parameters()) for layer, norm in decoder.inner_norms().items()}
        closed = [layer for layer, own in gates.items() if own and not any_open(own)]
        if closed:
            decoder.all_orders, orders = decoder.config.attention_order, decoder.config.layer_orders
            decoder.skipped_layers = closed
            shared, own = decoder.config, copy.deepcopy(decoder.config)
            for module in self.modules():
                if getattr(module, "config", None) is shared:
                    module.config = own
            decoder.run_at([1 if layer in closed else order for layer, order in enumerate(orders)])
        return closed

    def restore_levels(self) -> None:
        """Undoes `skip_closed_levels`."""
        decoder = self.base_model
        if decoder.all_orders is not None:
            decoder.run_at(decoder.all_orders)
            decoder.all_orders, decoder.skipped_layers = None, []

    def freeze_all_but_gates(self) -> "NexusPreTrainedModel":
        """Leaves only the gates trainable. Returns the model. Raises `ValueError` if it has none."""
        gates = self.gates().values()
        if not gates:
            raise ValueError(
                "The model has no gates to train: inner_gate=True makes them, in layers of order 2 and more."
            )
        self.requires_grad_(False)
        for gate in gates:
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
        self.num_slots, self.calls = config.num_hidden_layers, config.attention_calls()
        # Transformers changes `config.is_causal` while a forward pass is given `is_causal`, as by continuous batching.
        self.is_encoder = not config.is_causal
        # while closed levels are skipped: the model's own orders, and the layers whose gates have to stay closed
        self.all_orders: int | list[int] | None = None
        self.skipped_layers: list[int] = []
        self.post_init()

    def run_at(self, orders: int | list[int]):
        """Runs the layers at these orders, none of which is above its own."""
        self.config.attention_order = orders
        self.num_slots, self.calls = self.config.num_hidden_layers, self.config.attention_calls()
        for layer, calls in zip(self.layers, self.calls, strict=True):
            layer.take_calls(calls)
            layer.self_attn.take_calls(calls)
            for call in calls:
                layer.self_attn.get_submodule(call.name).take_place(call)

    def inner_norms(self) -> dict[int, nn.Module]:
        """By layer; those of skipped levels, too."""
        attentions = {place: layer.self_attn for place, layer in enumerate(self.layers)}
        return {place: each.inner_norm for place, each in attentions.items() if hasattr(each, "inner_norm")}

    def check_calls(self):
        calls, layers = self.config.attention_calls(), len(self.layers)
        if calls is not self.calls and calls[:layers] != self.calls[:layers]:
            raise ValueError(
                "The config was changed after the model was built (attention_order, inner_window or another field of "
                "its attention): pass the field to from_pretrained, or build a new model."
            )

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
        if not torch.compiler.is_compiling():
            self.check_calls()
        cache = one_of(cache, past_key_values)
        # Of a cache that grows, where the last layers were removed, there are less than the config says.
        refuse_other_slots(cache, (self.num_slots, self.layers[-1].self_attn.outer.layer_idx + 1))
        if self.skipped_layers and not torch.compiler.is_compiling():
            norms = self.inner_norms()
            if any_open([gate for layer in self.skipped_layers for gate in norms[layer].parameters()]):
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

    accepts_loss_kwargs = False  # the loss is a mean over the batch: Trainer divides it where it accumulates gradients

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
        count = tokens.sum(1, keepdim=True).clamp(min=1)  # an empty text has none
        pooled = (hidden_states * tokens[..., None]).sum(1) / count
        logits = self.score(pooled.to(hidden_states.dtype))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class NexusForTokenClassification(GenericForTokenClassification, NexusPreTrainedModel):
    """Classifies every token, (B, T) -> (B, T, num_labels)."""

    accepts_loss_kwargs = False  # as above

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
