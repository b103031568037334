"""
The definition of Nexus attention in float64, as plain and slow as it can be.

It is written from the formulas in docs/paper.md, not from the model. It takes a `NexusForCausalLM`'s parameters by
name and its config, and imports neither this project nor Transformers. Where the two agree, the model computes what the
definition says.

Shapes: B batch, T tokens, D hidden size, H heads, G key/value heads, d head size.
"""

import math

import torch

Weights = dict[str, torch.Tensor]

SCALE_EPS = 1e-6


def logits(
    state_dict: Weights,
    config,
    input_ids: torch.Tensor,  # (B, T)
    attention_mask: torch.Tensor | None = None,  # (B, T), 1 for tokens and 0 for padding
    position_ids: torch.Tensor | None = None,  # (B, T), by default 0, 1, 2, ...
) -> torch.Tensor:
    """Next-token logits (B, T, vocabulary). Those at padding positions mean nothing."""
    weights = {name: tensor.double() for name, tensor in state_dict.items()}
    batch, length = input_ids.shape
    if position_ids is None:
        position_ids = torch.arange(length).expand(batch, length)
    visible = torch.ones(batch, length, length, dtype=torch.bool)  # [b, i, j]: may token i look at token j?
    distance = torch.arange(length)[:, None] - torch.arange(length)  # j is so many tokens before i
    is_causal = getattr(config, "is_causal", True)
    if is_causal:
        visible = visible & (distance >= 0)
    if attention_mask is not None:
        visible = visible & attention_mask.bool()[:, None, :]
    window = getattr(config, "inner_window", None)
    inner_visible = visible
    if window is not None:
        inner_visible = visible & (distance < window if is_causal else distance.abs() <= window)

    hidden = weights["model.embed_tokens.weight"][input_ids] * getattr(config, "embedding_multiplier", 1.0)
    multiplier = getattr(config, "residual_multiplier", 1.0)
    for number, order in enumerate(orders(config)):
        layer = below(weights, f"model.layers.{number}")
        x = rms_norm(hidden, layer["input_layernorm.weight"], config.rms_norm_eps)
        own, theta = below(layer, "self_attn"), theta_of(config, number)
        added = nexus_attention(x, own, config, order, theta, position_ids, visible, inner_visible)
        hidden = hidden + multiplier * added
        x = rms_norm(hidden, layer["post_attention_layernorm.weight"], config.rms_norm_eps)
        hidden = hidden + multiplier * feed_forward(x, below(layer, "mlp"))
    hidden = rms_norm(hidden, weights["model.norm.weight"], config.rms_norm_eps)
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return hidden @ weights[head].T / getattr(config, "logits_scaling", 1.0)


def theta_of(config, layer: int) -> float | None:
    """The base of a layer's rotary embedding; None if it has none."""
    if layer in (getattr(config, "layers_without_rope", None) or ()):
        return None
    sliding = getattr(config, "sliding_rope_parameters", None)
    return (sliding if sliding and layer in config.sliding_layers else config.rope_parameters)["rope_theta"]


def nexus_attention(
    x, weights: Weights, config, order: int, theta: float | None, position_ids, visible, inner_visible
) -> torch.Tensor:
    """X, (B, T, D) -> what the layer adds to the residual stream, (B, T, D)."""
    scaling = getattr(config, "attention_multiplier", None) or 1 / math.sqrt(config.head_dim)

    def query(own: Weights, source):
        return rotate(split_heads(linear(own, "q_proj", source), config.head_dim), position_ids, theta)

    def key(own: Weights, source):
        return rotate(split_heads(linear(own, "k_proj", source), config.head_dim), position_ids, theta)

    def value(own: Weights, source):
        return split_heads(linear(own, "v_proj", source), config.head_dim)

    def attention(own: Weights, query_source, key_source, value_source, visible):
        return attend(query(own, query_source), key(own, key_source), value(own, value_source), visible, scaling)

    def refined(branch: str, level: int, before, inner):
        """What a level makes of a branch: `before` if that branch is not refined."""
        if not getattr(config, f"refine_{branch}"):
            return before
        scale = root_mean_square(before) / root_mean_square(inner) if config.inner_scale else 1.0
        gate = weights[f"inner_norm.{branch}_gate_{level}"] if config.inner_gate else 1.0
        return (1 - gate) * before + gate * scale * inner

    def project_inner(own: Weights, inner):
        return linear(own, "o_proj", inner) if config.inner_output_projection else inner

    if config.inner_attention == "shared":  # A_i+1 = Attend(A_i W_Q, A_i W_K, X W_V), Eq. 12
        query_source = key_source = value_source = x
        for level in range(1, order):
            inner = project_inner(weights, attention(weights, query_source, key_source, x, inner_visible))
            query_source = refined("query", level, x, inner)
            key_source = refined("key", level, x, inner)
            if level == order - 1:
                value_source = refined("value", level, x, inner)
        return linear(weights, "o_proj", attention(weights, query_source, key_source, value_source, visible))

    if config.inner_attention == "separate":  # the sources are outputs of attention layers of their own, Table 2
        sources = []
        for branch in ("query", "key", "value"):
            own = below(weights, f"inner_{branch}")
            is_nested = order > 1 and getattr(config, f"refine_{branch}")
            inner = project_inner(own, attention(own, x, x, x, inner_visible)) if is_nested else None
            sources.append(refined(branch, 1, x, inner) if is_nested else x)
        return linear(weights, "o_proj", attention(weights, *sources, visible))

    # Q' = softmax(Q Q^T / sqrt(d)) Q and K' = softmax(K K^T / sqrt(d)) K, Eq. 7 and 8, (B, *, T, d) each
    q, k = query(weights, x), key(weights, x)
    for level in range(1, order):
        q = refined("query", level, q, split_heads(attend(q, q, q, inner_visible, scaling), config.head_dim))
        k = refined("key", level, k, split_heads(attend(k, k, k, inner_visible, scaling), config.head_dim))
    return linear(weights, "o_proj", attend(q, k, value(weights, x), visible, scaling))


def attend(query, key, value, visible, scaling: float) -> torch.Tensor:
    """softmax(scaling · Q Kᵀ) V, head by head: (B, H, T, d), (B, G, T, d) twice -> (B, T, H·d). Usually 1 / √d."""
    heads_per_group = query.shape[1] // key.shape[1]
    outputs = []
    for head in range(query.shape[1]):
        group = head // heads_per_group
        scores = query[:, head] @ key[:, group].mT * scaling
        likelihood = scores.exp() * visible
        total = likelihood.sum(-1, keepdim=True)
        probability = likelihood / total.where(total > 0, 1.0)  # padding on the left sees nothing, and gets zeros
        outputs.append(probability @ value[:, group])
    return torch.cat(outputs, dim=-1)


def rotate(heads, position_ids, theta: float | None) -> torch.Tensor:
    """Rotary embedding of (B, *, T, d): the pair (j, j + d/2) turns by position · theta^(-2j/d). None: not at all."""
    if theta is None:
        return heads
    half = heads.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = position_ids[:, None, :, None] * frequency
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), dim=-1)


def feed_forward(x, weights: Weights) -> torch.Tensor:
    gate = linear(weights, "gate_proj", x)
    return linear(weights, "down_proj", gate * gate.sigmoid() * linear(weights, "up_proj", x))


def rms_norm(x, weight, eps: float) -> torch.Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def root_mean_square(x) -> torch.Tensor:
    return (x.pow(2).mean(-1, keepdim=True) + SCALE_EPS).sqrt()


def linear(weights: Weights, name: str, x) -> torch.Tensor:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def split_heads(projected, head_dim: int) -> torch.Tensor:
    return projected.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def orders(config) -> list[int]:
    order = config.attention_order
    return order if isinstance(order, list) else [order] * config.num_layers


def below(weights: Weights, prefix: str) -> Weights:
    """The weights of one submodule, named from there on."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in weights.items() if name.startswith(prefix + ".")}
