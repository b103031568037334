"""What a Nexus model has beyond its source, and starts from: gates, and the inner layers of "separate"."""

import hashlib

import torch

from ...configuration_nexus import NexusConfig
from .shards import PIECE


def is_nesting(name: str) -> bool:
    """Whether a tensor is one that a Nexus model has beyond a standard one: a gate, or of an inner layer."""
    return ".self_attn.inner_" in name


def is_gate(name: str) -> bool:
    return ".inner_norm." in name


def initial(name: str, shape: torch.Size, config: NexusConfig, seed: int | None) -> torch.Tensor:
    """Such a tensor, as the model itself would initialise it. It depends on these arguments alone."""
    if is_gate(name):
        return torch.full(shape, float(config.inner_gate_init))
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if name.endswith("_norm.weight"):
        return torch.ones(shape)
    tensor = torch.empty(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    for piece in tensor.view(-1).split(PIECE):
        # in float64: which float32 numbers are drawn depends on the CPU's vector instructions
        drawn = torch.randn(piece.shape, generator=generator, dtype=torch.float64)
        piece.copy_(drawn * config.initializer_range)
    return tensor
