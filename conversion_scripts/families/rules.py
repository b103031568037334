"""
What the family files are written with: rules for weights, among them those that a source multiplies in one product,
and for config fields that need computing.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...configuration_nexus import NexusConfig


def whole(tensor: torch.Tensor, config: NexusConfig) -> tuple[torch.Tensor, ...]:
    return (tensor,)


def _only(tensors: Sequence[torch.Tensor], config: NexusConfig) -> torch.Tensor:
    (tensor,) = tensors
    return tensor


@dataclass(frozen=True)
class WeightRule:
    """
    Where the weights of a source tensor belong. In a table of weights `*` stands for the layer number.

    Args:
        targets: Nexus tensors; none for a tensor that is deliberately left behind.
        split: source tensor -> one tensor per target, views where that is possible. Works on meta tensors too.
        join: its exact inverse.
    """

    targets: tuple[str, ...]
    split: Callable[[torch.Tensor, NexusConfig], tuple[torch.Tensor, ...]] = whole
    join: Callable[[Sequence[torch.Tensor], NexusConfig], torch.Tensor] = _only


LEFT_BEHIND = WeightRule(())


def from_config(make: Callable[[NexusConfig], torch.Tensor]) -> WeightRule:
    """A tensor of the source that is no weight of Nexus, since the config has what is in it."""
    return WeightRule((), join=lambda tensors, config: make(config))


def renamed(names: dict[str, str]) -> dict[str, WeightRule]:
    """A table of plain renames: source name -> Nexus name."""
    return {source: WeightRule((target,)) for source, target in names.items()}


def same_names(names: Iterable[str]) -> dict[str, WeightRule]:
    return renamed({name: name for name in names})


def without(table: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in names}


def parameters(modules: Iterable[str], *kinds: str) -> list[str]:
    """Every module with every kind of parameter ("weight", "bias")."""
    return [f"{module}.{kind}" for module in modules for kind in kinds]


def attention_projections(kind: str) -> tuple[str, ...]:
    return tuple(f"model.layers.*.self_attn.{projection}_proj.{kind}" for projection in ("q", "k", "v"))


def stacked(targets: tuple[str, ...], sizes: Callable[[NexusConfig], list[int]]) -> WeightRule:
    """Rows: all of the first target, then all of the second, ...; `sizes`: how many of each."""

    def split(tensor: torch.Tensor, config: NexusConfig) -> tuple[torch.Tensor, ...]:
        return tensor.split(sizes(config))

    def join(tensors: Sequence[torch.Tensor], config: NexusConfig) -> torch.Tensor:
        return torch.cat(tuple(tensors))

    return WeightRule(targets, split, join)


def interleaved_heads(kind: str) -> WeightRule:
    """Rows: query, key and value of the first head, then those of the second, ... (GPT-NeoX's query_key_value)."""

    def split(tensor: torch.Tensor, config: NexusConfig) -> tuple[torch.Tensor, ...]:
        heads = tensor.unflatten(0, (config.num_attention_heads, 3, config.head_dim))
        return tuple(projection.flatten(0, 1) for projection in heads.unbind(1))

    def join(tensors: Sequence[torch.Tensor], config: NexusConfig) -> torch.Tensor:
        heads = [tensor.unflatten(0, (config.num_attention_heads, config.head_dim)) for tensor in tensors]
        return torch.stack(heads, 1).flatten(0, 2)

    return WeightRule(attention_projections(kind), split, join)


def rotated_pairs(*kinds: str) -> dict[str, WeightRule]:
    """
    Queries and keys of a source that rotates rows 0 and 1 of a head together, 2 and 3, and so on: the first of every
    pair, then the second of every pair, as Nexus has them. What is not rotated stays.
    """

    def reordered(tensor: torch.Tensor, config: NexusConfig, shape: tuple[int, int]) -> torch.Tensor:
        rope = config.rope_parameters
        share = 1.0 if rope["rope_type"] == "proportional" else rope.get("partial_rotary_factor", 1.0)
        size = math.ceil(int(config.head_dim * share) / 2) * 2  # frequencies are of pairs
        rotated, rest = tensor.unflatten(0, (-1, config.head_dim)).tensor_split([size], 1)
        return torch.cat((rotated.unflatten(1, shape).transpose(1, 2).flatten(1, 2), rest), 1).flatten(0, 1)

    def split(tensor: torch.Tensor, config: NexusConfig) -> tuple[torch.Tensor, ...]:
        return (reordered(tensor, config, (-1, 2)),)

    def join(tensors: Sequence[torch.Tensor], config: NexusConfig) -> torch.Tensor:
        return reordered(tensors[0], config, (2, -1))

    names = [name for kind in kinds for name in attention_projections(kind)[:2]]
    return {name: WeightRule((name,), split, join) for name in names}


@dataclass(frozen=True)
class Computed:
    """
    Config fields that are not the same value under another name.

    Args:
        fields: of the source, that `read` reads.
        read: source config -> NexusConfig fields.
        write: its inverse.
    """

    fields: frozenset[str]
    read: Callable[[Any], dict[str, Any]]
    write: Callable[[NexusConfig], dict[str, Any]]


NOTHING = Computed(frozenset(), lambda config: {}, lambda config: {})


def rope_of(config: Any) -> dict[str, Any]:
    """The rotary settings of a source's config, some of which have a theta and nothing else."""
    if hasattr(config, "rope_parameters"):
        return config.rope_parameters
    return {"rope_type": "default", "rope_theta": config.rope_theta}


def switch(name: str, *targets: str) -> Computed:
    """One source field that turns several of Nexus' on or off."""
    return Computed(
        frozenset({name}),
        lambda config: dict.fromkeys(targets, bool(getattr(config, name))),
        lambda config: {name: getattr(config, targets[0])},
    )


# Of sources that rotate another part of each head where it is not said
ROTARY_SHARE = Computed(
    frozenset(),
    lambda config: {},  # it is in rope_parameters
    lambda config: {"partial_rotary_factor": config.rope_parameters.get("partial_rotary_factor", 1.0)},
)


def _read_windows(config: Any) -> dict[str, Any]:
    windowed = [layer for layer, kind in enumerate(config.layer_types) if kind == "sliding_attention"]
    return {"sliding_window": config.sliding_window, "sliding_layers": windowed} if windowed else {}


def windowed_layers(config: NexusConfig) -> list[int]:
    if config.sliding_window is None:
        return []
    return list(range(config.num_layers)) if config.sliding_layers is None else sorted(set(config.sliding_layers))


def _write_windows(config: NexusConfig) -> dict[str, Any]:
    windowed = windowed_layers(config)
    return {
        "use_sliding_window": bool(windowed),
        "sliding_window": config.sliding_window,
        "layer_types": [
            "sliding_attention" if layer in windowed else "full_attention" for layer in range(config.num_layers)
        ],
        # What is read where `layer_types` is not known yet. It can say no more than "from this layer on".
        "max_window_layers": min(windowed, default=config.num_layers),
    }


# Qwen's way to say which layers are windowed
WINDOWED_LAYERS = Computed(
    frozenset({"use_sliding_window", "sliding_window", "layer_types", "max_window_layers"}),
    _read_windows,
    _write_windows,
)


def _write_layer_types(config: NexusConfig) -> dict[str, Any]:
    fields = _write_windows(config)
    # Without a window they have a size for one all the same: Transformers makes both masks.
    return {name: fields[name] for name in ("layer_types", "sliding_window") if fields[name] is not None}


LAYER_TYPES = Computed(frozenset({"sliding_window", "layer_types"}), _read_windows, _write_layer_types)


def _read_windows_with_rope(config: Any) -> dict[str, Any]:
    windows = _read_windows(config)
    full, sliding = (config.rope_parameters[f"{kind}_attention"] for kind in ("full", "sliding"))
    return {**windows, "rope_parameters": full, **({"sliding_rope_parameters": sliding} if windows else {})}


def _write_windows_with_rope(config: NexusConfig) -> dict[str, Any]:
    sliding = config.sliding_rope_parameters or config.rope_parameters
    ropes = {"full_attention": dict(config.rope_parameters), "sliding_attention": dict(sliding)}
    return {**_write_layer_types(config), "rope_parameters": ropes}


# Of sources with a rotary embedding for each kind of layer
WINDOWS_WITH_ROPE = Computed(
    LAYER_TYPES.fields | {"rope_parameters", "rope_local_base_freq"}, _read_windows_with_rope, _write_windows_with_rope
)
