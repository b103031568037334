# Copyright 2026 The Nexus Transformers authors. Licensed under the Apache License, Version 2.0.
"""
What a forward pass of a Nexus model is given: its arguments, a cache of Transformers, masks.

Everything is checked or made here before a model computes with it. Shapes: B batch, T new tokens, S all
tokens (cached and new), H heads, G key/value heads, d head size.
"""

import copy
import warnings

import torch
import transformers
from torch.nn.functional import pad
from transformers.cache_utils import Cache, StaticLayer
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import TransformersKwargs

from .configuration_nexus import TESTED_TRANSFORMERS, NexusConfig

# Transformers 5.24 renamed the cache, as argument and in outputs. `forward` and `generate` take it under both names.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


# What `forward` accepts besides its own arguments. The last line has no meaning to a decoder: it is ignored, as Llama
# ignores it.
KNOWN_ARGUMENTS = {
    *TransformersKwargs.__annotations__,
    *("shift_labels", "num_items_in_batch"),  # the loss
    *("read_index", "write_index", "block_table", "logits_indices", "logits_processor_args"),  # continuous batching
    *("token_type_ids", "cache_position"),
}


def refuse_unknown(arguments: dict) -> None:
    """
    Raises `TypeError` for an argument that holds a cache or tensors and that nothing here reads. Swallowed, as
    `**kwargs` would, it makes wrong outputs that look right: a renamed cache makes every decoding step see one token.
    """
    for name, value in arguments.items():
        if name not in KNOWN_ARGUMENTS and holds_state(value):
            oldest, newest = TESTED_TRANSFORMERS
            raise TypeError(
                f"Nexus does not know the argument {name!r}. Leave it out; if Transformers itself passes it, install a "
                f"version that this was tested with: {oldest} to {newest} (installed: {transformers.__version__})."
            )


def one_of(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache, by whichever of its two names it came."""
    if past_key_values is not None:
        if cache is not None:
            raise ValueError("Pass the cache once: as `cache`, or by its old name, `past_key_values`.")
        if CACHE == "cache" and not torch.compiler.is_compiling():
            warnings.warn("`past_key_values` is deprecated. Use `cache` instead.", FutureWarning, stacklevel=3)
        cache = past_key_values
    if cache is not None and not hasattr(cache, "update"):
        raise TypeError(f"The cache must be a `Cache` of Transformers, such as `DynamicCache`, not a {type(cache)}.")
    return cache


def holds_state(value: object) -> bool:
    if isinstance(value, list | tuple | dict):
        return any(holds_state(item) for item in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, torch.Tensor) or hasattr(value, "get_seq_length")


def is_updated_by_the_attention_function(cache: Cache | None) -> bool:
    """Paged caches were, before Transformers 5.24."""
    return CACHE != "cache" and cache is not None and not isinstance(cache, Cache)


def refuse_other_heads(cache: Cache, slot: int, heads: int) -> None:
    """Raises `ValueError` if a slot was allocated or filled ahead of time with another number of heads."""
    layer = cache.layers[slot] if isinstance(cache, Cache) and slot < len(cache.layers) else None
    if layer is None or not layer.is_initialized or layer.keys.dim() != 4 or layer.keys.shape[1] == heads:
        return
    found = layer.keys.shape[1]
    if isinstance(layer, StaticLayer):
        raise ValueError(
            f"Slot {slot} of this cache was allocated for {found} heads, and has {heads} in this model: let the cache "
            "allocate itself, without `early_initialization`, `prefill_chunk_size` or export."
        )
    raise ValueError(
        f"Slot {slot} of this cache was filled with {found} heads, and has {heads} in this model. The cache of another "
        "model does not fit, nor does prefix tuning where inner_attention='self' caches queries too: use LoRA."
    )


def refuse_other_slots(cache: Cache | None, slots: tuple[int, int]) -> None:
    """Raises `ValueError` if a cache was made for other orders: the same numbers would be other calls."""
    if isinstance(cache, Cache) and len(cache.layers) not in (0, *slots):
        raise ValueError(
            f"This cache has {len(cache.layers)} slots, and the model {slots[0]}: it was made for another model, or "
            "before `skip_closed_levels` or `restore_levels`. Make a new one."
        )


def refuse_uneven_slots(config: NexusConfig, who: str) -> None:
    """Raises `ValueError` if slots differ in heads or windows. Those of caches of pages, which `who` has, cannot."""
    calls = [call for layer in config.attention_calls() for call in layer if call.stores]
    if len({call.window for call in calls} - {None}) > 1:
        raise ValueError(
            f"{who} knows one window, and this model has two, sliding_window={config.sliding_window} and inner_window="
            f"{config.inner_window}: use `generate`."
        )
    if len({call.num_key_value_heads for call in calls}) > 1:
        raise ValueError(
            f"{who} needs as many heads in every slot of the cache, and inner_attention='self' also caches queries, "
            "which have more heads than keys in this model: use `generate`."
        )


def refuse_encoder(config: NexusConfig, what: str) -> None:
    """Raises `ValueError` if tokens see those after them: then there is no cache, and nothing is generated."""
    if not config.is_causal:
        raise ValueError(
            f"{what} needs a causal model, and this one is an encoder (is_causal=False): use NexusForMaskedLM, "
            "AutoModelForMaskedLM or a classifier, without a cache."
        )


def can_store_keys_alone(cache: Cache, slot: int) -> bool:
    """
    Whether this slot takes values of width 0, so that a layer's values are stored once. Quantized layers do not, nor do
    layers that were allocated ahead of time with room for values (static caches before chunked prefill or export), nor
    paged caches.
    """
    if not isinstance(cache, Cache):
        return False
    layer = cache.layers[slot] if slot < len(cache.layers) else None
    if layer is None or hasattr(layer, "_quantize"):
        return layer is None
    return not layer.is_initialized or layer.values.shape[-1] == 0


def attention_masks(config: NexusConfig, kinds: set[str], **arguments) -> dict[str, torch.Tensor | None]:
    """
    The masks of `kinds`: of layers without a window, of layers with one, and of inner levels with one. A mask that is
    made already, (B, 1, T, S), stays as it is, but for the window of the inner levels.
    """
    masks, given = {}, arguments["attention_mask"]
    create_mask, create_windowed_mask = create_causal_mask, create_sliding_window_causal_mask
    if not config.is_causal:
        create_mask, create_windowed_mask = create_bidirectional_mask, create_bidirectional_sliding_window_mask
        arguments = {name: arguments[name] for name in ("inputs_embeds", "attention_mask")} | {CACHE: None}
    if "full_attention" in kinds:
        masks["full_attention"] = create_mask(config=config, **arguments)
    if "sliding_attention" in kinds:
        masks["sliding_attention"] = create_windowed_mask(config=config, **arguments)
    if "inner_attention" in kinds and isinstance(given, torch.Tensor) and given.dim() == 4:
        masks["inner_attention"] = cut_to_window(given, config, arguments[CACHE])
    elif "inner_attention" in kinds:
        if given is not None and not isinstance(given, torch.Tensor):
            raise ValueError("inner_window cannot be cut out of a ready BlockMask: pass a tensor, 2-D or 4-D.")
        inner = copy.copy(config)
        inner.sliding_window = min(config.inner_window, config.sliding_window)
        mask = create_windowed_mask(config=inner, **arguments)
        masks["inner_attention"] = None if hides_nothing(mask) else mask
    return masks


def hides_nothing(mask: torch.Tensor | None) -> bool:
    """Of a step of one token: most often a slot has just the keys that it sees, and attention is faster unmasked."""
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape[2] > 1:
        return False
    return not torch.compiler.is_compiling() and bool(mask.all())


def cut_to_window(mask: torch.Tensor, config: NexusConfig, cache: Cache | None) -> torch.Tensor:
    """A ready mask, (B, 1, T, S), for the inner levels: within the window, and of the tokens that their slots keep."""
    length, total = mask.shape[-2:]
    past, returned = total - length, slice(None)
    if cache is not None:
        past = cache.get_seq_length()
        size, first = cache.get_mask_sizes(length, cache.is_sliding.index(True) if True in cache.is_sliding else 0)
        returned = slice(first, first + size)
    position = torch.arange(max(length, total), device=mask.device)
    distance = past + position[:length, None] - position[:total]  # the key is so many tokens before the query
    outside = distance >= config.inner_window if config.is_causal else distance.abs() > config.inner_window
    nothing = torch.finfo(mask.dtype).min if mask.is_floating_point() else False
    return mask.masked_fill(outside, nothing)[..., returned]


def block_size(window: int) -> int:
    """Queries per block: measured on a CPU, as many as the window is long, and not too few."""
    return max(window, 32)


def mask_in_blocks(mask: torch.Tensor | None, config: NexusConfig, batch: int) -> torch.Tensor | None:
    """
    The mask of inner levels with a window, (B or 1, 1, T, S), for `in_blocks`: (B*n, 1, b, 2b). None where PyTorch's
    fused attention does not gain by it: given a mask, it computes whatever is masked, too. FlashAttention and flex
    attention do not. Made once per forward pass.
    """
    size = block_size(min(config.inner_window, config.sliding_window))
    if (
        not config.is_causal
        or torch.compiler.is_exporting()  # an exported graph is for every length: it must not compare them
        or config._attn_implementation != "sdpa"
        or mask is None  # as it is for a sequence no longer than the window
        or mask.dtype != torch.bool
        or mask.shape[2] <= size
    ):
        return None
    length, total = mask.shape[2:]
    tail, front = -length % size, length + size - total
    mask = pad(pad(mask, (front, tail)), (0, 0, 0, tail), value=True)  # a row that sees nothing has no softmax
    mask = mask.unfold(2, size, size).unfold(3, 2 * size, size).diagonal(dim1=2, dim2=3)  # (B, 1, b, 2b, n)
    return mask.permute(0, 4, 1, 2, 3).expand(batch, -1, -1, -1, -1).flatten(0, 1)


def in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Cuts attention with a window into n blocks of b queries, each with the b keys before its own and those, as a batch:
    queries (B, H, T, d) -> (B*n, H, b, d), keys and values (B, G, S, d) -> (B*n, G, 2b, d). The outputs of a sequence,
    one block after the other, are those of its tokens, then n*b - T to throw away.
    """
    length = query.shape[2]
    tail, front = -length % size, length + size - key.shape[2]  # cuts if negative

    def cut(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(2, (-1, size)).transpose(1, 2)  # (B, n, *, b, d)

    key, value = (cut(pad(states, (0, 0, front, tail))) for states in (key, value))
    key, value = (torch.cat((states[:, :-1], states[:, 1:]), dim=3).flatten(0, 1) for states in (key, value))
    return cut(pad(query, (0, 0, 0, tail))).flatten(0, 1), key, value
