"""
The kinds of nested attention, as fields of a config, and tiny models of them. What works with one of them has to work
with each, or to be refused with its reason.
"""

import pytest
import torch
from transformers import PreTrainedModel

from nexus_transformers import NexusConfig, NexusForCausalLM

ARMS = {
    "shared": {"attention_order": 2},
    "shared, order 3": {"attention_order": 3},
    "shared, W_O": {"attention_order": 2, "inner_output_projection": True},
    "shared, values": {"attention_order": 2, "refine_value": True},
    "separate QK": {"attention_order": 2, "inner_attention": "separate"},
    "separate QKV": {"attention_order": 2, "inner_attention": "separate", "refine_value": True},
    "self": {"attention_order": 2, "inner_attention": "self"},
}
each_arm = pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # attention far from uniform, so that nesting matters
    "tie_word_embeddings": False,
    "inner_gate": True,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


def build(seed: int = 0, model_class: type = NexusForCausalLM, **changes) -> PreTrainedModel:
    """A tiny model, no parameter of which has a special value: as trained models have them, not all 1 and 0."""
    torch.manual_seed(seed)
    model = model_class(NexusConfig(**SHAPE | changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_gate_" in name:
                parameter.uniform_(0.2, 0.9)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model
