"""Tokenizers of Nexus models: carried over from the models they come from, or trained for a model from scratch."""

from .carry_over import (
    CARRIED_FILES,
    TOKENIZER_FILES,
    carry_over_tokenizer,
    keep_tokenizer_class,
    rebuild_gguf_tokenizer,
    save_tokenizer,
)
from .check import check_tokenizer
from .train import CHAT_TEMPLATES, SPECIAL_TOKENS, config_fields, train_tokenizer

__all__ = [
    "CARRIED_FILES",
    "CHAT_TEMPLATES",
    "SPECIAL_TOKENS",
    "TOKENIZER_FILES",
    "carry_over_tokenizer",
    "check_tokenizer",
    "config_fields",
    "keep_tokenizer_class",
    "rebuild_gguf_tokenizer",
    "save_tokenizer",
    "train_tokenizer",
]
