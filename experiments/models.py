"""
The models that the experiments compare: Nexus and its rivals, small, and what a training step of each costs.

Every comparison stands twice. At equal parameters: all variants of one width and depth have the same weights. At equal
training compute: `training_flops` says what a token costs, so that a rival can be given more steps, layers or width.
"""

import torch
from torch import nn

from common import costs
from nexus_transformers import NexusConfig, NexusForCausalLM
from nexus_transformers.attention_nexus import NexusSelfAttention, rotate

WITH_W_O = {"inner_output_projection": True}  # between the levels, as version 0.1 had it; the paper's Eq. 12 has none
VARIANTS = {
    "standard": {"attention_order": 1},
    "order 2": {"attention_order": 2},
    "order 2, with W_O": {"attention_order": 2, **WITH_W_O},
    "separate": {"attention_order": 2, "inner_attention": "separate"},
    "order 3": {"attention_order": 3},
    "order 2, first layer": {"attention_order": [2]},  # filled up with order 1
    "order 3, first layer": {"attention_order": [3]},
    "order 2, first layer, queries only": {"attention_order": [2], "refine_key": False},
    "order 2, first layer, keys only": {"attention_order": [2], "refine_query": False},
    "order 2, first layer, no inner scale": {"attention_order": [2], "inner_scale": False},
    "order 2, queries only": {"attention_order": 2, "refine_key": False},
    "order 2, keys only": {"attention_order": 2, "refine_query": False},
    "order 2, no inner scale": {"attention_order": 2, "inner_scale": False},
    "order 2, gates from 0": {"attention_order": 2, "inner_gate": True},
    "looped": {"attention_order": 1},  # every layer applied twice in a row, with the same weights
    "inside heads": {"attention_order": 2, "inner_attention": "self"},
}


def config(variant: str, layers: int, **fields) -> NexusConfig:
    """The config of a variant, by name or as a list of one order per layer."""
    nesting = {"attention_order": variant} if isinstance(variant, list) else dict(VARIANTS[variant])
    order = nesting["attention_order"]
    if isinstance(order, list):
        nesting["attention_order"] = order + [1] * (layers - len(order))
    common = {"num_layers": layers, "bos_token_id": None, "eos_token_id": None, "rope_theta": 10000.0}
    return NexusConfig(**common | nesting | fields)


def label(run: dict) -> str:
    """The variant's name, or "2 1 1 1" where the settings have a list of orders."""
    variant = run["variant"]
    if isinstance(variant, list):
        return " ".join(map(str, variant + [1] * (run["layers"] - len(variant))))
    return variant


def build(variant: str, layers: int, **fields) -> NexusForCausalLM:
    model = NexusForCausalLM(config(variant, layers, **fields))
    decoder = model.model
    if variant == "looped":  # without a cache: its slots are not counted anew
        decoder.layers = nn.ModuleList(layer for layer in decoder.layers for _ in range(2))
    if variant == "inside heads":
        for layer in decoder.layers:
            layer.self_attn.__class__ = RotatedAtEachLevel
    return model


class RotatedAtEachLevel(NexusSelfAttention):
    """
    The paper's Eq. 7 to 9 as the committed results have it: queries and keys are rotated anew at every level, and what
    is mixed is not rotated. The model's `inner_attention="self"` rotates once, before level 1, and mixes what is
    rotated. All else is the same. For training without a cache or padding.
    """

    def forward(
        self, hidden_states, position_embeddings, attention_mask=None, inner_mask=None, cache=None, **kwargs
    ) -> torch.Tensor:
        def rotated(heads: torch.Tensor) -> torch.Tensor:  # (B, *, T, d)
            return rotate(heads.transpose(1, 2), *position_embeddings).transpose(1, 2)

        heads = {
            "query": self.normed_heads(self.q_norm, self.q_proj(hidden_states)).transpose(1, 2),
            "key": self.normed_heads(self.k_norm, self.k_proj(hidden_states)).transpose(1, 2),
        }
        for level, branches in self.refined.items():
            for branch in branches:
                attend, x = getattr(self, f"inner_{branch}_{level}"), heads[branch]
                inner, _, _ = attend(rotated(x), rotated(x), x, attention_mask, **kwargs)
                heads |= self.inner_norm(x, self.heads(inner).transpose(1, 2), level, [branch])
        query, key, value = rotated(heads["query"]), rotated(heads["key"]), self.value(hidden_states)
        return self.o_proj(self.outer(query, key, value, attention_mask, **kwargs)[0])


def training_flops(variant: str, layers: int, batch: int, length: int, **fields) -> int:
    """Operations of a forward and a backward pass, attention's included (common/costs.py)."""
    layers = 2 * layers if variant == "looped" else layers
    return costs.flops(config(variant, layers, **fields), batch, length, training=True)["total"]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def optimizer(model: nn.Module, learning_rate: float, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW that decays matrices only: no norms, biases or gates."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
