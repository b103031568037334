"""
The paths of a layer: for what its last level attends to and would not if nothing were refined, which token the query or
the key gathered that from, and at order 3 and beyond what *that* gathering goes back to, level by level.
"""

from dataclasses import dataclass

import torch

from ..attention_nexus import NexusSelfAttention
from .credits import Call, MixedRefinement, ProjectedRefinement, Refinement

MIN_GAIN = 0.05  # attention that refining must add to a token, for it to be newly attended
MAX_PATHS = 4  # newly attended tokens that are explained per row
MIN_SHARE = 0.1  # of the rise of log attention, for a token's credit to explain anything
PAIRS_AT_ONCE = 256


@dataclass
class Hop:
    """
    One step back.

    Attributes:
        branch: "query" or "key", the side of the attention that did the gathering.
        level: the level that gathered, from 1.
        token: where it gathered from. weight: how much the inner head `head` attends to it.
        head: the inner head through which most of the credit came.
        credit: what the token added to the logit above the row's mean, in logits, all inner heads together.
        inner: whose inner attention gathered, "query" or "key"; None if one serves both.
    """

    branch: str
    level: int
    token: int
    head: int
    weight: float
    credit: float
    inner: str | None


@dataclass
class Path:
    """
    The last level attends from token `query` to `target`, by `gain` more than if nothing were refined. `chains`: at
    most one per branch, the first hop first.
    """

    query: int
    target: int
    gain: float
    chains: list[list[Hop]]


class PathFinder:
    """For one layer of order 2 or more, as it did in a forward pass (collect.py)."""

    def __init__(self, layer):
        self.calls, self.refined = layer.calls, layer.attention.refined
        kind = MixedRefinement if isinstance(layer.attention, NexusSelfAttention) else ProjectedRefinement
        self.refinements: dict[tuple[Call, str], Refinement] = {}
        for call in self.calls:
            for branch in ("query", "key"):
                if (inner := self.gathered_by(call, branch)) is not None:
                    self.refinements[call, branch] = kind(layer, call, branch, inner)

    def gathered_by(self, call: Call, branch: str) -> Call | None:
        """The inner call that made the queries, or the keys, of `call`. None if they come from X."""
        refines = call.branch or branch  # in "self" the inner queries attend to inner queries
        if refines not in self.refined.get(call.level - 1, []):
            return None
        return next(each for each in self.calls if each.level == call.level - 1 and each.branch in (None, refines))

    def unrefined(self, call: Call) -> Call:
        """What `call` would be if nothing were refined."""
        return next(each for each in self.calls if each.branch == call.branch)

    def paths(self) -> list[list[Path]]:
        """By head and by rows, the largest gains of a row first."""
        last = self.calls[-1]
        weights = last.weights
        gains, targets = (weights - self.unrefined(last).weights).topk(min(MAX_PATHS, len(weights[0])))  # (H, T, 4)
        paths = []
        for head, new in enumerate(gains >= MIN_GAIN):
            rows, _ = new.nonzero(as_tuple=True)
            pairs = zip(rows.split(PAIRS_AT_ONCE), targets[head][new].split(PAIRS_AT_ONCE), strict=True)
            chains = [chains for i, j in pairs for chains in self.chains(last, head, i, j)]
            found = zip(rows.tolist(), targets[head][new].tolist(), gains[head][new].tolist(), chains, strict=True)
            paths.append([Path(i, j, gain, [chain for chain in of_pair if chain]) for i, j, gain, of_pair in found])
        return paths

    def rises(self, call: Call, head: int, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """Of log attention, from nothing refined to this call, (P,). Positive where there is a gain."""
        first, last = (each.weights[head, i, j].clamp_min(1e-9).log() for each in (self.unrefined(call), call))
        return last - first

    def chains(self, call: Call, head: int, i: torch.Tensor, j: torch.Tensor) -> list[list[list[Hop]]]:
        """For every pair its two chains, through the key and through the query, the stronger first; empty if none."""
        by_branch = [self.chain(branch, call, head, i, j) for branch in ("key", "query")]
        pairs = zip(*by_branch, strict=True)
        return [sorted(chains, key=lambda chain: -chain[0].credit if chain else 0.0) for chains in pairs]

    def chain(self, branch: str, call: Call, head: int, i: torch.Tensor, j: torch.Tensor) -> list[list[Hop]]:
        refinement = self.refinements.get((call, branch))
        if refinement is None or refinement.gate == 0 or not len(i):
            return [[] for _ in i]
        inner, gatherers = refinement.inner, j if branch == "key" else i
        credits = refinement.credits(head, i, j)  # (H', P, T)
        of_token, tokens = credits.sum(0).max(-1)
        inner_heads = credits[:, torch.arange(len(i)), tokens].argmax(0)
        inner_heads += refinement.inner_heads(refinement.part(head)).start or 0
        hops = inner_heads, gatherers, tokens
        weights = inner.weights[hops]
        enough = (of_token > 0) & (of_token >= MIN_SHARE * self.rises(call, head, i, j))
        found = zip(*(part.tolist() for part in (tokens, inner_heads, weights, of_token, enough)), strict=True)
        chains = [[Hop(branch, inner.level, *hop, inner.branch)] if explains else [] for *hop, explains in found]
        # Where the gathering is itself new, the stronger of its own two chains follows.
        new = enough & (weights - self.unrefined(inner).weights[hops] >= MIN_GAIN)
        for inner_head in inner_heads[new].unique().tolist():
            (numbers,) = (new & (inner_heads == inner_head)).nonzero(as_tuple=True)
            further = self.chains(inner, inner_head, gatherers[numbers], tokens[numbers])
            for number, (stronger, _) in zip(numbers.tolist(), further, strict=True):
                chains[number] += stronger
        return chains
