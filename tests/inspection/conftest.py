"""Nexus models that several files of tests look at."""

import pytest
import torch

import checkpoints

SHAPE = {
    "attention_order": 2,
    "num_layers": 2,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": checkpoints.VOCAB_SIZE,
    "initializer_range": 0.3,  # large enough for attention to be far from uniform
}


@pytest.fixture(scope="session")
def nexus_folder(llama_folder, tmp_path_factory):
    """Order 2 with closed gates; only read."""
    from nexus_transformers.conversion_scripts.convert import convert

    folder = tmp_path_factory.mktemp("inspect") / "tiny-nexus"
    convert(llama_folder, folder, verify=False)
    return folder


@pytest.fixture(scope="session")
def save_nexus(tmp_path_factory):
    """Saves a random model with a tokenizer: `save_nexus(attention_order=3, ...)` -> its folder."""

    from nexus_transformers import NexusConfig, NexusForCausalLM

    def run(model_class=NexusForCausalLM, **fields):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("inspect") / "random-nexus"
        model_class(NexusConfig(**SHAPE | fields)).save_pretrained(folder)
        checkpoints.tokenizer().save_pretrained(folder)
        return folder

    return run
