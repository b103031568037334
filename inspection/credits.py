"""
Why does a level attend from token i to token j where it would not if nothing were refined? Its queries and keys are
made of what an inner call gathered. So a token p that i's query, or j's key, gathered from has a part in it. This file
measures that part, in logits.

With inner heads h' and their weights a, a refined query or key is a weighted sum of messages,

    k(j) = sum_h' sum_p a_h'(j, p) k[m_h'(p) in j] + what was not gathered (closed gates, biases)

    "shared", "separate":  k[m_h'(p) in j] = rotation of j ( W_K c(j) m_h'(p) )     m_h'(p) = V_h'(p), or V_h'(p) W_O,h'
    "self":                k[m_h(p) in j]  = c(j) x_h(p)              x what the inner call mixes, in the same head only

(c is the inner scale and the gate), and so is the logit q(i).k(j), once through the key, with the query as it is, and
once through the query, with the key as it is. Softmax compares the keys of a row, so only differences within it count.
Hence the *credit* of p: by how much its message beats what the row got from that inner head on average over the visible
keys j':

    through the key:    a_h'(j, p) ( q(i).k[m_h'(p) in j] - mean_j' sum_p' a_h'(j', p') q(i).k[m_h'(p') in j'] )
    through the query:  a_h'(i, p) q[m_h'(p) in i].( k(j) - mean_j' k(j') )

As the weights a sum to 1 over p, the credits of one branch, summed over h' and p, are exactly what its gathered part
adds to logit(i, j) beyond the row's mean; without gates and biases that is all of it. Norms (the inner scale, and
query/key norms where the model has them) are held at the values that they had. Refined values have no part in a logit.

Shapes: T tokens, D hidden size, H heads, G key/value heads, d head size, P pairs (i, j), H' inner heads that take part:
all in "shared" and "separate", one in "self". All in float32.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import nn

from ..attention_nexus import NexusZeroCenteredRMSNorm, rotate


@dataclass(eq=False)
class Call:
    """
    One attention of a layer. query (H, T, d); key, value (G, T, d); weights (H, T, T).

    level: as in `config.attention_calls()`; 0 is the last level with nothing refined, which the model does not compute.
    branch: the branch that an inner call refines, if it refines one only.
    """

    level: int
    branch: str | None
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    weights: torch.Tensor
    output: torch.Tensor  # of the heads, before W_O, (T, H*d)
    visible: torch.Tensor  # (T, T), True where a query may look
    scaling: float

    def group(self, head: int) -> int:
        """The key/value head of a query head."""
        return head // (len(self.query) // len(self.key))

    @cached_property
    def look(self) -> torch.Tensor:
        """(T, T), an even look at all keys that a row may look at."""
        return self.visible / self.visible.sum(-1, keepdim=True)


class Refinement:
    """
    What an inner call gathered for the queries or for the keys (`branch`) of a later call. Of a query head or key/value
    head, `part`, a subclass says:

        inner_heads(part): which inner heads take part.
        back(asked, gatherer, part): from queries or keys of tokens that gathered, (P, d), to inner values, (H', P, d).
        gathered(part): what each inner head adds to the query or key of each token, (T, H', d).
    """

    def __init__(self, call: Call, branch: str, inner: Call):
        self.call, self.branch, self.inner = call, branch, inner
        heads = len(inner.query)
        self.values = inner.value.repeat_interleave(heads // len(inner.value), dim=0)  # (H, T, d)
        self.outputs = inner.output.unflatten(1, (heads, -1))  # (T, H, d)
        self.even_keys = cache(self.even_keys)

    def credits(self, head: int, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """In this head, the credit of every inner head and token in the pairs (i, j), (H', P, T)."""
        query, key = self.call.query[head], self.call.key[self.call.group(head)]
        gatherer, asked = (j, query[i]) if self.branch == "key" else (i, key[j] - (self.call.look @ key)[i])
        part = self.part(head)
        heads = self.inner_heads(part)
        # Instead of taking every message to the logit, take what asks for it back to the values.
        credits = self.back(asked, gatherer, part) @ self.values[heads].transpose(1, 2)
        if self.branch == "key":
            credits -= torch.einsum("nd,nhd->hn", asked, self.even_keys(part)[i])[:, :, None]
        return credits.mul_(self.inner.weights[heads][:, gatherer]).mul_(self.call.scaling)

    def part(self, head: int) -> int:
        return head if self.branch == "query" else self.call.group(head)

    def even_keys(self, part: int) -> torch.Tensor:
        """Of what the keys gathered from each inner head, the mean over the keys that a row may look at, (T, H', d)."""
        return torch.einsum("ij,jhd->ihd", self.call.look, self.gathered(part))


class ProjectedRefinement(Refinement):
    """ "shared" and "separate": the inner output takes the place of X and is projected."""

    def __init__(self, layer, call: Call, branch: str, inner: Call):  # layer: as collect.py's LayerPass
        super().__init__(call, branch, inner)
        attention, norm = layer.attention, layer.attention.inner_norm
        self.cos, self.sin = positions(layer)
        owner = attention if inner.branch is None else getattr(attention, f"inner_{branch}")
        # W_O by inner head, (D, H, d); without it the heads' outputs stand side by side
        shape = self.outputs.shape[1:]
        self.output = owner.o_proj.weight.unflatten(1, shape) if owner.inner_output_projection else None
        gathered = owner.inner_output(inner.output)
        self.source = norm(layer.hidden_states, gathered, inner.level, [branch])[branch]
        self.scale = scale_of(norm, layer.hidden_states, gathered)
        self.gate = gate_of(norm, branch, inner.level)
        self.size, self.across_heads = attention.head_dim, attention.norm_across_heads
        self.weights = (
            (attention.q_proj, attention.q_norm) if branch == "query" else (attention.k_proj, attention.k_norm)
        )

    def inner_heads(self, part: int) -> slice:
        return slice(None)

    def back(self, asked: torch.Tensor, gatherer: torch.Tensor, part: int) -> torch.Tensor:
        projection, factor = self.projection(part)
        asked = rotate_back(asked, self.cos[gatherer, 0], self.sin[gatherer, 0])
        return self.by_inner_head(asked * factor[gatherer] @ projection)

    def gathered(self, part: int) -> torch.Tensor:
        projection, factor = self.projection(part)
        heads = torch.einsum("thd,hed->the", self.outputs, self.by_inner_head(projection))
        return rotate(heads * factor[:, None], self.cos, self.sin)

    def by_inner_head(self, rows: torch.Tensor) -> torch.Tensor:
        """Back from the width of X to the inner heads, (P, D) -> (H, P, d)."""
        if self.output is None:
            return rows.unflatten(1, self.outputs.shape[1:]).transpose(0, 1)
        return torch.einsum("nD,Dhd->hnd", rows, self.output)

    def projection(self, part: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        W_Q of a query head or W_K of a key/value head, (d, D), and the factor that the norms and the gate of the token
        that gathers put on what it makes of a message, (T, d).
        """
        projection, norm = self.weights
        rows = slice(part * self.size, (part + 1) * self.size)
        factor = self.scale * self.gate
        if not isinstance(norm, nn.Identity):
            projected = projection(self.source)
            normed = projected if self.across_heads else projected[:, rows]
            rms = (normed.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
            weight = norm.weight + 1 if isinstance(norm, NexusZeroCenteredRMSNorm) else norm.weight
            factor = factor * weight[rows if self.across_heads else slice(None)] / rms
        return projection.weight[rows], factor.expand(-1, self.size)


class MixedRefinement(Refinement):
    """ "self": each head mixes its own queries, or keys, and the mixture takes their place."""

    def __init__(self, layer, call: Call, branch: str, inner: Call):
        super().__init__(call, branch, inner)
        norm = layer.attention.inner_norm
        self.mixed = self.outputs.transpose(0, 1)  # (H, T, d)
        self.gate = gate_of(norm, inner.branch, inner.level)
        self.factor = scale_of(norm, self.values, self.mixed) * self.gate  # (H, T, 1)

    def inner_heads(self, part: int) -> slice:
        return slice(part, part + 1)

    def back(self, asked: torch.Tensor, gatherer: torch.Tensor, part: int) -> torch.Tensor:
        return (asked * self.factor[part, gatherer])[None]

    def gathered(self, part: int) -> torch.Tensor:
        return (self.mixed[part] * self.factor[part])[:, None]


def positions(layer) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of a layer, (T, 1, r) each."""
    if layer.position_embeddings is None:  # a layer without positions
        ones = torch.ones(len(layer.hidden_states), 1, layer.attention.head_dim)
        return ones, torch.zeros_like(ones)
    cos, sin = layer.position_embeddings
    return cos[0], sin[0]


def scale_of(norm: nn.Module, unrefined: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """The inner scale, (..., D) twice -> (..., 1)."""
    if not norm.scaled:
        return torch.ones_like(inner[..., :1])
    return (norm.energy(unrefined) / norm.energy(inner)).sqrt()


def gate_of(norm: nn.Module, branch: str, level: int) -> float:
    """1 without gates."""
    return getattr(norm, f"{branch}_gate_{level}").item() if norm.gated else 1.0


def rotate_back(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The transpose of `rotate`: <rotate_back(x), y> = <x, rotate(y)>. (P, d) with (P, r) each."""
    size = cos.shape[-1]
    if size < heads.shape[-1]:
        return torch.cat((rotate_back(heads[..., :size], cos, sin), heads[..., size:]), dim=-1)
    return heads * cos + (heads * sin).roll(size // 2, dims=-1)
