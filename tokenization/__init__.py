"""Tokenizers of Nexus models: carried over from the models they come from, or trained for a model from scratch."""

from .check import check_tokenizer
from .train import CHAT_TEMPLATES, SPECIAL_TOKENS, config_fields, train_tokenizer

__all__ = ["CHAT_TEMPLATES", "SPECIAL_TOKENS", "check_tokenizer", "config_fields", "train_tokenizer"]
