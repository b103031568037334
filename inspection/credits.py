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

Shapes: T tokens, D hidden size, H heads, G key/value heads, d head size, P pairs (i, j).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.nn.functional import linear

from ..modeling_nexus import NexusAttention, NexusProjections, rotate


@dataclass
class Call:
    """One attention call of a layer, in float32. query (H, T, d); key, value (G, T, d); weights (H, T, T)."""

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
        self.cos, self.sin = (part[0].float() for part in position_embeddings)
        norm = attention.source_norm
        output = projections_of(attention, level - 1).o_proj
        heads, size = self.inner.query.shape[0], self.inner.query.shape[-1]

        bias = None if output.bias is None else output.bias.float()
        gathered = linear(self.inner.output, output.weight.float(), bias)
        self.scale = torch.ones_like(hidden_states[:, :1])
        if norm.normalize:
            self.scale = (norm.energy(hidden_states) / norm.energy(gathered)).sqrt()
        sources = norm(hidden_states, gathered, level)
        self.sources = dict(zip(("query", "key"), sources, strict=True))
        self.gates = {branch: gate_of(norm, branch, level) for branch in ("query", "key")}
        # every token's message through every inner head, (H, T, D)
        values = self.inner.value.repeat_interleave(heads // self.inner.value.shape[0], dim=0)
        self.messages = torch.einsum("htd,Dhd->htD", values, output.weight.float().unflatten(1, (heads, size)))
        self._heads = {}

    def head(self, head: int) -> "RefinedHead":
        if head not in self._heads:
            self._heads[head] = RefinedHead(self, head)
        return self._heads[head]

    def projected_messages(self, branch: str, head: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The messages after W_Q or W_K of one head, (H, T, d), and the factor that the norms and the gate put on them in
        the token that gathers, (T, d).
        """
        projection, norm = {
            "query": (self.weights.q_proj, self.weights.q_norm),
            "key": (self.weights.k_proj, self.weights.k_norm),
        }[branch]
        size = self.weights.head_dim
        rows = slice(head * size, (head + 1) * size)
        factor = self.scale * self.gates[branch]
        if not isinstance(norm, nn.Identity):
            bias = None if projection.bias is None else projection.bias.float()
            projected = linear(self.sources[branch], projection.weight.float(), bias)
            across = self.weights.norm_across_heads
            normed = projected if across else projected[:, rows]
            rms = (normed.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
            factor = factor * norm.weight.float()[rows if across else slice(None)] / rms
        return linear(self.messages, projection.weight.float()[rows]), factor.expand(-1, size)


def gate_of(norm: nn.Module, branch: str, level: int) -> float:
    """0 for a branch that is not refined, 1 without gates."""
    if not norm.refine[branch]:
        return 0.0
    return getattr(norm, f"{branch}_gate_{level}").item() if norm.gated else 1.0


class RefinedHead:
    """The credits of one head of a refined level."""

    def __init__(self, refinement: Refinement, head: int):
        self.refinement = refinement
        self.group = refinement.call.group(head)
        self.index = head
        self.scaling = refinement.call.scaling
        self.query = refinement.call.query[head]  # (T, d)
        self.key = refinement.call.key[self.group]  # (T, d)
        self.look = refinement.call.look

    @cached_property
    def through_key(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Messages (H, T, d), factor (T, d), and what each row got from each inner head on average, (T, H)."""
        messages, factor = self.refinement.projected_messages("key", self.group)
        gathered = torch.einsum("hjp,hpd->jhd", self.refinement.inner.weights, messages) * factor[:, None]
        gathered = rotate(gathered, self.refinement.cos, self.refinement.sin)
        logits = torch.einsum("id,jhd->ijh", self.query, gathered) * self.scaling
        return messages, factor, torch.einsum("ij,ijh->ih", self.look, logits)

    @cached_property
    def through_query(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.refinement.projected_messages("query", self.index)

    def credits(self, branch: str, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """The credit of every inner head and token in the pairs (i, j), (P, H, T)."""
        if branch == "key":
            messages, factor, mean = self.through_key
            gatherer, asked = j, self.query[i]
        else:
            messages, factor = self.through_query
            gatherer, asked, mean = i, self.key[j] - (self.look @ self.key)[i], None
        # Instead of rotating every message as the gatherer does, rotate back what asks for it.
        asked = rotate_back(asked, self.refinement.cos[gatherer, 0], self.refinement.sin[gatherer, 0])
        credits = torch.einsum("nd,hpd->nhp", asked * factor[gatherer], messages) * self.scaling
        if mean is not None:
            credits = credits - mean[i][:, :, None]
        return self.refinement.inner.weights[:, gatherer].transpose(0, 1) * credits


def rotate_back(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The transpose of `rotate`: <rotate_back(x), y> = <x, rotate(y)>. (P, d) with (P, r) each."""
    size = cos.shape[-1]
    if size < heads.shape[-1]:
        return torch.cat((rotate_back(heads[..., :size], cos, sin), heads[..., size:]), dim=-1)
    return heads * cos + (heads * sin).roll(size // 2, dims=-1)
