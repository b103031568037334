"""
What source and result are both given: prompts, passages, chats, and the lengths from which on they compute otherwise.
Copied beside isolated_check.py to an empty folder, so it imports nothing of our package.
"""

from itertools import islice
from pydoc_data.topics import topics

import torch

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n\tif n < 2:\n        return n\n",
    "  Leading, double  and trailing spaces  \n\n",
    "Zażółć gęślą jaźń. Ελληνικά, русский, العربية, 中文, 日本語, 한국어, emoji 🧠🔁.",
    "1 + 1 = 2, 3.14159e-10; <|im_start|>user</s><s>[INST]",
    "",
]
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
TOPICS = ["class", "exceptions", "operator-summary", "typesseq-common", "execmodel", "lambda"]
WHOLE = PASSAGES, LENGTH, NEW_TOKENS = 4, 256, 24
LAYERWISE = 2, 32, 3  # the same, where every pass reads all weights from the disk
BEYOND = 32  # tokens past a window, or past the length that a rotary embedding was made for
AFFORDED = 2e12  # parameters times tokens of that pass


def english(tokenizer, vocab_size: int) -> list[list[int]]:
    """
    Real English texts, Python's own documentation, which every Python carries; as many as `passages` takes, if the
    tokenizer can read them. To models of molecules or music, text is unknown tokens.
    """
    texts = [topics[topic] for topic in TOPICS if topic in topics] + [" ".join(topics.values())]
    read = (tokens(tokenizer, text, vocab_size)[:LENGTH] for text in texts)
    return list(islice((ids for ids in read if len(ids) > 1), PASSAGES // 2))


def passages(texts: list[list[int]], vocab_size: int, count: int, length: int) -> list[list[int]]:
    """Random ids, and every other passage one of the texts."""
    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(vocab_size, (count, length), generator=generator).tolist()
    for place, ids in zip(range(1, count, 2), texts, strict=False):
        batches[place] = ids[:length]
    return batches


def masked(batches: list[list[int]], token: int, vocab_size: int) -> list[list[int]]:
    """With some tokens masked, in every passage another share of them: a model may count them."""
    generator = torch.Generator().manual_seed(1)
    if not 0 <= token < vocab_size:
        return batches
    draws = [torch.rand(len(ids), generator=generator) < 0.15 * (number % 3) for number, ids in enumerate(batches)]
    return [
        [token if hidden else id for id, hidden in zip(ids, drawn.tolist(), strict=True)]
        for ids, drawn in zip(batches, draws, strict=True)
    ]


def tokens(tokenizer, text: str, vocab_size: int) -> list[int]:
    """Empty if the tokenizer cannot, or makes tokens that the model has not."""
    try:
        ids = tokenizer(text)["input_ids"]
    except MemoryError:
        raise
    except Exception:  # tokenizers raise what they like, the Rust ones among them
        return []
    return ids if all(0 <= token < vocab_size for token in ids) else []


def templates(tokenizer) -> list[str | None]:
    """The names of its chat templates; None is the only one."""
    if not tokenizer.chat_template:
        return []
    return list(tokenizer.chat_template) if isinstance(tokenizer.chat_template, dict) else [None]


def thresholds(config) -> dict[str, int]:
    """Lengths from which on the model computes otherwise: config field -> tokens."""
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)  # where each kind of layer has its own
    found = {
        "sliding_window": getattr(config, "sliding_window", None),
        "original_max_position_embeddings": rope.get("original_max_position_embeddings"),
        "max_position_embeddings": config.max_position_embeddings if rope.get("rope_type") == "dynamic" else None,
    }
    return {name: length for name, length in found.items() if isinstance(length, int)}
