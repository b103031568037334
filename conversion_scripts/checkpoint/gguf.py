"""
Reading GGUF files, which Transformers does. All of the model is in memory, unlike a safetensors source.

Transformers takes from a file what it knows and drops the rest without a word. So every tensor and every key of the
architecture is accounted for here: read by Transformers, understood here, or refused.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from ...errors import CheckpointError, told_as
from ...tokenization.carry_over import alone
from ..progress import quiet_when_piped

ROPE_FACTORS = "rope_freqs.weight"  # by which Llama 3.1's rotary frequencies are divided
# Of the keys that Transformers does not read, those that say what it assumes: key -> value, or field of the config
ASSUMED = {
    "vocab_size": "vocab_size",
    "rope.dimension_count": "head_dim",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
}
WITHOUT_MEANING = {"tensor_data_layout"}
TEMPLATES = "tokenizer.chat_template."
INSTEAD = "Convert the original checkpoint, in safetensors, instead."
LLAMA_3_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read_gguf(file: Path) -> tuple[PreTrainedModel, bool, list[str]]:
    """
    The model, dequantized to float32, whether the file holds a tokenizer, and the names of chat templates besides the
    default one, which Transformers does not read.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError(
            f"{file}: reading GGUF needs the package gguf: pip install 'nexus-transformers[gguf]'."
        ) from error
    with told_as(CheckpointError, f"{file}: Transformers cannot read this GGUF file ({{reason}})."):
        reader = GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        check_whole(file, fields)
        with quiet_when_piped(), alone(file) as folder:  # the reader has a progress bar of its own
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
            )
    check_tensors(file, tensors, model, fields["general.architecture"])
    check_keys(file, fields, model.config)
    if ROPE_FACTORS in tensors:
        factors = torch.from_numpy(tensors[ROPE_FACTORS].data.copy()).float()
        model.config.rope_parameters = scaled_rope(file, factors, model.config)
    templates = [name.removeprefix(TEMPLATES) for name in reader.fields if name.startswith(TEMPLATES)]
    return model, "tokenizer.ggml.tokens" in reader.fields, templates


def check_whole(file: Path, fields: dict[str, Any]) -> None:
    """Raises `CheckpointError` for part of a model: Transformers would make a whole one of it, with random weights."""
    if fields.get("general.type") == "adapter":
        raise CheckpointError(
            f"{file}: holds an adapter only. Merge it into its base model (llama-export-lora) and convert that."
        )
    if (parts := fields.get("split.count", 1)) > 1:
        raise CheckpointError(
            f"{file}: is one of {parts} parts of a model, and Transformers reads one file. Make one of them "
            "(llama-gguf-split --merge)."
        )


def check_tensors(file: Path, tensors: Iterable[str], model: PreTrainedModel, architecture: str) -> None:
    """Raises `CheckpointError` for a tensor that Transformers drops, and for one that it makes up."""
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    read = get_gguf_hf_weights_map(model, processor)
    for name in tensors:
        if name not in read and name != ROPE_FACTORS:
            raise CheckpointError(f"{file}: Transformers does not read its tensor {name!r}. {INSTEAD}")
    tied = {"output.weight"} if model.config.tie_word_embeddings else set()
    for name in read:
        if name not in tensors and name not in tied:
            raise CheckpointError(f"{file}: lacks tensor {name!r}; the checkpoint is incomplete.")


def check_keys(file: Path, fields: dict[str, Any], config: Any) -> None:
    """Raises `CheckpointError` for a key of the architecture that says what Transformers does not read."""
    architecture = fields["general.architecture"]
    read = {name for name, field in GGUF_CONFIG_MAPPING.get(architecture, {}).items() if field}
    sizes = {"head_dim": config.hidden_size // config.num_attention_heads} | config.to_dict()
    for key, value in fields.items():
        name = key.removeprefix(f"{architecture}.")
        if name == key or name in read | WITHOUT_MEANING:
            continue
        assumed = ASSUMED.get(name)
        assumed = sizes.get(assumed, assumed)
        if assumed is None or value != assumed:
            raise CheckpointError(f"{file}: Transformers does not read its key {key}={value!r}. {INSTEAD}")


def scaled_rope(file: Path, factors: torch.Tensor, config: Any) -> dict[str, Any]:
    """
    The rotary settings that Transformers makes these factors of, one per pair of a head. llama.cpp writes Llama 3.1's
    scaling as its factors alone.
    """
    rope = dict(config.rope_parameters)
    if torch.equal(factors, torch.ones_like(factors)):
        return rope
    scaled = {**rope, **LLAMA_3_BANDS, "rope_type": "llama3", "factor": round(factors.max().item(), 4)}
    if not torch.allclose(factors, llama_3_factors(scaled, len(factors)), rtol=1e-4):
        raise CheckpointError(f"{file}: the factors in {ROPE_FACTORS} are not those of Llama 3.1's scaling. {INSTEAD}")
    return scaled


def llama_3_factors(rope: dict[str, Any], pairs: int) -> torch.Tensor:
    """By how much Llama 3.1 slows each pair down: not at all below a short wavelength, by `factor` above a long one."""
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (torch.arange(pairs) / pairs)
    turns = rope["original_max_position_embeddings"] / wavelengths
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / rope["factor"] + smooth)
