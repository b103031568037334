"""
Why does a level attend from token i to token j where the first level did not? Its queries and keys were refined: made
of what the level before gathered. So a token p that i's query, or j's key, gathered from has a part in it. This file
measures that part, in logits.

With head h of the level, inner heads h' and inner weights a, a refined source is a weighted sum of messages,

    R(j) = c(j) sum_h' sum_p a_h'(j, p) m_h'(p) + bias          m_h'(p) = V_h'(p) W_O,h'

(c is the source scale), and projection and rotation are linear. So the logit q(i).k(j) is itself a sum over h' and p,
once through the key, with the query as it is, and once through the query, with the key as it is. Softmax compares the
keys of a row, so only differences within it count. Hence the *credit* of p: by how much its message beats what the row
got from that inner head on average over the visible keys j':

    through the key:    a_h'(j, p) ( q(i).k[m_h'(p) in j] - mean_j' sum_p' a_h'(j', p') q(i).k[m_h'(p') in j'] )
    through the query:  a_h'(i, p) q[m_h'(p) in i].( k(j) - mean_j' k(j') )

As the weights a sum to 1 over p, the credits of one branch, summed over h' and p, are exactly what its gathered part
adds to logit(i, j) beyond the row's mean; without gates and biases that is all of it. Norms (the source scale, and
query/key norms where the model has them) are held at the values that they had.

Shapes: T tokens, D hidden size, H heads, G key/value heads, d head size, P pairs (i, j). All in float32.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import nn

from ..modeling_nexus import NexusAttention, NexusProjections, rotate


@dataclass
class Call:
    """One attention call of a layer. query (H, T, d); key, value (G, T, d); weights (H, T, T)."""

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


def projections_of(attention: NexusAttention, level: int) -> NexusProjections:
    """The weights of a level, counted from 0."""
    return attention if attention.inner is None or level == attention.order - 1 else attention.inner


class Refinement:
    """What the level before `level` (from 0, at least 1) made of the queries and keys of `level`."""

    def __init__(
        self,
        attention: NexusAttention,
        hidden_states: torch.Tensor,  # X, (T, D)
        position_embeddings: tuple[torch.Tensor, torch.Tensor],  # cos and sin, (1, T, 1, r) each
        calls: list[Call],
        level: int,
    ):
        self.weights = projections_of(attention, level)
        self.inner, self.call = calls[level - 1], calls[level]
        self.cos, self.sin = (part[0] for part in position_embeddings)
        norm = attention.inner_norm
        output = projections_of(attention, level - 1).o_proj
        gathered = output(self.inner.output)
        self.scale = torch.ones_like(hidden_states[:, :1])
        if norm.normalize:
            self.scale = (norm.energy(hidden_states) / norm.energy(gathered)).sqrt()
        sources = norm(hidden_states, gathered, level)
        self.sources = dict(zip(("query", "key"), sources, strict=True))
        self.gates = {branch: gate_of(norm, branch, level) for branch in ("query", "key")}
        heads, size = self.inner.query.shape[0], self.inner.query.shape[-1]
        self.output = output.weight.unflatten(1, (heads, size))  # W_O by inner head, (D, H, d)
        self.values = self.inner.value.repeat_interleave(heads // len(self.inner.value), dim=0)  # (H, T, d)
        self.even_keys = cache(self.even_keys)

    def credits(self, branch: str, head: int, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """In this head, the credit of every inner head and token in the pairs (i, j), (H, P, T)."""
        query, group = self.call.query[head], self.call.group(head)
        key = self.call.key[group]
        if branch == "key":
            gatherer, asked, part = j, query[i], group
        else:
            gatherer, asked, part = i, key[j] - (self.call.look @ key)[i], head
        projection, factor = self.projection(branch, part)
        # Instead of taking every message to the logit, take what asks for it back to the values.
        back = rotate_back(asked, self.cos[gatherer, 0], self.sin[gatherer, 0]) * factor[gatherer] @ projection
        back = torch.einsum("nD,Dhd->hnd", back, self.output)
        credits = back @ self.values.transpose(1, 2)
        if branch == "key":
            credits -= torch.einsum("nd,nhd->hn", asked, self.even_keys(group)[i])[:, :, None]
        return credits.mul_(self.inner.weights[:, gatherer]).mul_(self.call.scaling)

    def even_keys(self, group: int) -> torch.Tensor:
        """Of what the keys gathered from each inner head, the mean over the keys that a row may look at, (T, H, d)."""
        projection, factor = self.projection("key", group)
        outputs = self.inner.output.unflatten(1, self.output.shape[1:])
        both = torch.einsum("Dhd,eD->hde", self.output, projection)
        gathered = torch.einsum("thd,hde->the", outputs, both) * factor[:, None]
        return torch.einsum("ij,jhd->ihd", self.call.look, rotate(gathered, self.cos, self.sin))

    def projection(self, branch: str, part: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        W_Q of a query head or W_K of a key/value head, (d, D), and the factor that the norms and the gate of the token
        that gathers put on what it makes of a message, (T, d).
        """
        projection, norm = {
            "query": (self.weights.q_proj, self.weights.q_norm),
            "key": (self.weights.k_proj, self.weights.k_norm),
        }[branch]
        size = self.weights.head_dim
        rows = slice(part * size, (part + 1) * size)
        factor = self.scale * self.gates[branch]
        if not isinstance(norm, nn.Identity):
            projected = projection(self.sources[branch])
            across = self.weights.norm_across_heads
            normed = projected if across else projected[:, rows]
            rms = (normed.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
            factor = factor * norm.weight[rows if across else slice(None)] / rms
        return projection.weight[rows], factor.expand(-1, size)


def gate_of(norm: nn.Module, branch: str, level: int) -> float:
    """0 for a branch that is not refined, 1 without gates."""
    if not norm.refine[branch]:
        return 0.0
    return getattr(norm, f"{branch}_gate_{level}").item() if norm.gated else 1.0


def rotate_back(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The transpose of `rotate`: <rotate_back(x), y> = <x, rotate(y)>. (P, d) with (P, r) each."""
    size = cos.shape[-1]
    if size < heads.shape[-1]:
        return torch.cat((rotate_back(heads[..., :size], cos, sin), heads[..., size:]), dim=-1)
    return heads * cos + (heads * sin).roll(size // 2, dims=-1)
