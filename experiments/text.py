"""Real text for language modelling: Shakespeare's works, tokenized once and kept in .cache."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from common.texts import CACHE, shakespeare
from nexus_transformers.tokenization import train_tokenizer

TRAIN, HELD_OUT = "train", "held_out"


def prepare(vocab_size: int) -> Path:
    """
    A file with the token ids of the training works and of the held-out ones, every sixth, (tokens,) each, and the bytes
    of the latter's text. The tokenizer is trained on the training works only.
    """
    path = CACHE / "evidence" / f"shakespeare-{vocab_size}.safetensors"
    if path.exists():
        return path
    training, held_out = shakespeare()
    tokenizer = train_tokenizer(training, vocab_size)
    tensors = {}
    for part, chosen in ((TRAIN, training), (HELD_OUT, held_out)):
        texts = [file.read_bytes().decode() for file in chosen]
        ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        tensors[part] = torch.tensor([token for each in ids for token in each], dtype=torch.int32)
        tensors[f"{part}_bytes"] = torch.tensor(sum(len(text.encode()) for text in texts))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    save_file(tensors, unfinished)
    unfinished.replace(path)
    return path


def blocks(path: Path, part: str, length: int, limit: int | None = None) -> list[dict]:
    """The text cut into blocks of `length` tokens; with a limit that many, spread over the whole text."""
    ids = load_file(path)[part].long()
    rows = ids[: len(ids) // length * length].view(-1, length)
    if limit is not None:
        rows = rows[torch.linspace(0, len(rows) - 1, min(limit, len(rows))).long()]
    return [{"input_ids": row, "labels": row} for row in rows]


def bytes_per_token(path: Path) -> float:
    """Of the held-out text."""
    tensors = load_file(path)
    return tensors[f"{HELD_OUT}_bytes"].item() / len(tensors[HELD_OUT])
