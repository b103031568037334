"""Reading GGUF files, which Transformers does. All of the model is in memory, unlike a safetensors source."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ...errors import CheckpointError, reason_of
from ..progress import quiet_when_piped


def read_gguf(file: Path) -> tuple[PreTrainedModel, bool]:
    """The model, dequantized to float32, and whether the file holds a tokenizer."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError(
            f"{file}: reading GGUF needs the package gguf: pip install 'nexus-transformers[gguf]'."
        ) from error
    try:
        has_tokenizer = "tokenizer.ggml.tokens" in GGUFReader(file).fields
        with quiet_when_piped():  # the reader has a progress bar of its own
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except Exception as error:
        raise CheckpointError(f"{file}: Transformers cannot read this GGUF file ({reason_of(error)}).") from error
    return model, has_tokenizer
