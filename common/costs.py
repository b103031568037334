"""
What a decoder must do, counted from its config: floating-point operations, bytes read while decoding, bytes of cache.

The bound of every ratio in benchmarks/ is a ratio of two of these numbers, Nexus over Llama. Counted is what grows with
the model and cannot be avoided: matrix products (a multiply and an add are two operations) and the reading of weights,
keys and values. Not counted: norms, rotary embedding, activations, softmax, residual sums and the embedding's look-up,
which Llama has too, and the inner scale and gates, which only Nexus has. So a measured ratio may lie a little above its
bound for reasons of arithmetic alone, and below it where Llama spends more of its time on what is not counted.

Works on a `NexusConfig` and on a `LlamaConfig`. B batch, T new tokens, P tokens in the cache before them, S = P + T.
"""

import math
from functools import partial

from transformers import PreTrainedConfig

from nexus_transformers import NexusConfig

SHAPE = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size")


def nexus_config(config: PreTrainedConfig) -> NexusConfig:
    """A Llama is a Nexus model of order 1."""
    if config.model_type == "nexus":
        return config
    shape = {name: getattr(config, name) for name in (*SHAPE, "tie_word_embeddings")}
    shape["head_dim"] = getattr(config, "head_dim", None)
    return NexusConfig(attention_order=1, num_layers=config.num_hidden_layers, **shape)


def widths(config: PreTrainedConfig) -> tuple[int, int]:
    """Features of all query heads and of all key (or value) heads."""
    config = nexus_config(config)
    return config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim


def weights(config: PreTrainedConfig) -> dict[str, int]:
    """Numbers that one token is multiplied with in one forward pass, a weight as often as it is used."""
    config = nexus_config(config)
    query, key_value = widths(config)
    features = {"query": query, "key": key_value, "value": key_value}
    rows = 0
    for call in (call for layer in config.attention_calls() for call in layer):
        rows += sum(features[branch] for branch in call.projects)
        rows += query if call.name == "outer" or config.inner_output_projection else 0  # W_O
    matrix = config.hidden_size * config.intermediate_size
    return {
        "projections": config.hidden_size * rows,
        "mlp": config.num_layers * (3 if config.mlp_gated else 2) * matrix,
        "mlp_down": config.num_layers * matrix,  # of which the last product of each layer
        "head": config.hidden_size * (config.vocab_size + (config.hidden_size if config.lm_head_transform else 0)),
    }


def flops(
    config: PreTrainedConfig,
    batch: int,
    length: int,
    *,
    past: int = 0,
    logits: int | None = None,
    training: bool = False,
    checkpointed: bool = False,
    attention: str = "causal",
) -> dict[str, int]:
    """
    Operations of one forward pass, or with `training` of a forward and a backward pass, by part and in "total".

    Args:
        length, past: T and P.
        logits: Positions per sequence that get logits; by default all T. Prefill needs one.
        training: A product costs three: itself, the gradient of its input and that of its weight. Fused attention makes
            its scores again in the backward pass, so its two products become two and five.
        checkpointed: Layers run forward twice, apart from each layer's very last product (the MLP's down projection),
            whose result the backward pass does not need. The head runs once.
        attention: Which products of queries and keys count, see `pairs`. "all" also keeps its scores for the backward
            pass, where the other two make them again.
    """
    config = nexus_config(config)
    sides = (pairs, length, past) if config.is_causal else (pairs_both_sides, length)
    pairs_of = partial(*sides, attention)
    products = sum(call.num_query_heads * pairs_of(call.window) for layer in config.attention_calls() for call in layer)
    scores = 2 * batch * config.head_dim * products  # one of attention's two products
    used = weights(config)
    tokens = 2 * batch * length

    passes = 3 if training else 1
    again = 1 if training and checkpointed else 0
    products = 2 if not training else (6 if attention == "all" else 7) + 2 * again
    parts = {
        "projections": (passes + again) * tokens * used["projections"],
        "attention": products * scores,
        "mlp": (passes + again) * tokens * used["mlp"] - again * tokens * used["mlp_down"],
        "head": passes * 2 * batch * (length if logits is None else logits) * used["head"],
    }
    return parts | {"total": sum(parts.values())}


def pairs(length: int, past: int, attention: str, window: int | None = None) -> int:
    """
    Pairs of a query and a key whose product one head of one sequence computes.

    Args:
        attention: "causal", the pairs that a causal model needs, and nearly those that FlashAttention computes on a
            GPU. "all", also those that are masked afterwards: Transformers' "eager". "cpu", those of PyTorch's fused
            kernel on a CPU: it takes a block of queries and as many whole blocks of 512 keys as cover the last of them,
            so that up to 512 tokens all pairs are computed (FlashAttentionKernel.cpp, torch 2.13). The model gives it
            an inner level with a window in blocks.
        window: Tokens that a query attends to, itself included; by default all.
    """
    if window is not None and window < past + length:
        block = max(window, 32)  # `block_size` in inputs_nexus.py, which a test compares
        if attention == "cpu" and length > block:
            return math.ceil(length / block) * block * 2 * block
        past = min(past, window - 1)  # what is kept
        if attention == "causal" or length == 1:
            growing = min(length, window - past)  # queries that see one key more than the one before
            return growing * past + growing * (growing + 1) // 2 + (length - growing) * window
    total = past + length
    if attention == "causal" or length == 1:
        return length * past + length * (length + 1) // 2
    if attention == "all":
        return length * total
    block = 256 if length >= 768 else 64 if length >= 192 else 32
    ends = [min(start + block, length) for start in range(0, length, block)]
    keys = [min(total, 512 * math.ceil((past + end) / 512)) for end in ends]
    return sum(min(block, length - i * block) * keys[i] for i in range(len(ends)))


def pairs_both_sides(length: int, attention: str, window: int | None = None) -> int:
    """The same of an encoder: a window is on both sides, and all is computed but where only what is seen counts."""
    if window is None or attention != "causal":
        return length * length
    return sum(min(i + window, length - 1) - max(i - window, 0) + 1 for i in range(length))


def bytes_read(config: PreTrainedConfig, batch: int, attended: int, itemsize: int) -> dict[str, int]:
    """
    Bytes that one decoding step must read, one new token per sequence, by part and in "total".

    A weight counts each time it is used and keys and values each time they are attended to: a "shared" nested layer
    reads W_Q, W_K and the values at every level, and what is both key and value in "self" counts twice. Hardware with
    room in its cache may read some of them only once.

    Args:
        attended: Tokens that the new one attends to, itself included.
        itemsize: Bytes per number, of weights and cache alike.
    """
    config = nexus_config(config)
    used = weights(config)
    calls = [call for layer in config.attention_calls() for call in layer]
    numbers = sum(2 * call.num_key_value_heads * min(attended, call.window or attended) for call in calls)
    parts = {
        "weights": itemsize * (used["projections"] + used["mlp"] + used["head"]),
        "cache": itemsize * batch * config.head_dim * numbers,
    }
    return parts | {"total": sum(parts.values())}


def cache_bytes(config: PreTrainedConfig, batch: int, length: int, itemsize: int) -> int:
    """Bytes of keys and values kept for `length` tokens of `batch` sequences, in caches that can keep keys alone."""
    config = nexus_config(config)
    if not config.is_causal:
        return 0
    numbers = 0
    for call in (call for layer in config.attention_calls() for call in layer):
        kept = length if call.window is None else min(length, config.sliding_window - 1)
        numbers += len(call.stores) * call.num_key_value_heads * kept
    return itemsize * batch * config.head_dim * numbers


def parameters(config: PreTrainedConfig) -> int:
    """Weights of the model, norms, biases and gates left out. Only "separate" nesting adds any."""
    config = nexus_config(config)
    used = weights(config)
    standard = config.num_layers * 2 * config.hidden_size * sum(widths(config))
    projections = used["projections"] if config.inner_attention == "separate" else standard
    embeddings = 0 if config.tie_word_embeddings else config.hidden_size * config.vocab_size
    return projections + used["mlp"] + used["head"] + embeddings
