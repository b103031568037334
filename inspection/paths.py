"""
The paths of a layer: for what its last level attends to and its first did not, which token the query or the key
gathered that from, and at order 3 and beyond what *that* gathering goes back to, level by level.
"""

from dataclasses import dataclass

import torch

from .credits import Refinement

MIN_GAIN = 0.05  # attention that the last level must put on a token beyond the first, for it to be newly attended
MAX_PATHS = 4  # newly attended tokens that are explained per row
MIN_SHARE = 0.1  # of the rise of log attention, for a token's credit to explain anything
PAIRS_AT_ONCE = 256


@dataclass
class Hop:
    """
    One step back.

    Attributes:
        branch: "query" or "key", the one that did the gathering.
        level: the level that gathered, from 1.
        token: where it gathered from. weight: how much the inner head `head` attends to it.
        head: the inner head through which most of the credit came.
        credit: what the token added to the logit above the row's mean, in logits, all inner heads together.
    """

    branch: str
    level: int
    token: int
    head: int
    weight: float
    credit: float


@dataclass
class Path:
    """
    The last level attends from token `query` to `target`, by `gain` more than the first level does. `chains`: at most
    one per branch, the first hop first.
    """

    query: int
    target: int
    gain: float
    chains: list[list[Hop]]


class PathFinder:
    """For one layer of order 2 or more, as it did in a forward pass (collect.py)."""

    def __init__(self, layer):
        self.calls = layer.calls
        self.refinements = [None] + [
            Refinement(layer.attention, layer.hidden_states, layer.position_embeddings, layer.calls, level)
            for level in range(1, len(layer.calls))
        ]

    def paths(self) -> list[list[Path]]:
        """By head and by rows, the largest gains of a row first."""
        last = self.calls[-1].weights
        gains, targets = (last - self.calls[0].weights).topk(min(MAX_PATHS, last.shape[-1]))  # (H, T, 4)
        paths = []
        for head, new in enumerate(gains >= MIN_GAIN):
            rows, _ = new.nonzero(as_tuple=True)
            pairs = zip(rows.split(PAIRS_AT_ONCE), targets[head][new].split(PAIRS_AT_ONCE), strict=True)
            chains = [chains for i, j in pairs for chains in self.chains(len(self.calls) - 1, head, i, j)]
            found = zip(rows.tolist(), targets[head][new].tolist(), gains[head][new].tolist(), chains, strict=True)
            paths.append([Path(i, j, gain, [chain for chain in of_pair if chain]) for i, j, gain, of_pair in found])
        return paths

    def rises(self, level: int, head: int, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """Of log attention, from the first level to this one, (P,). Positive where there is a gain."""
        first, last = (self.calls[number].weights[head, i, j].clamp_min(1e-9).log() for number in (0, level))
        return last - first

    def chains(self, level: int, head: int, i: torch.Tensor, j: torch.Tensor) -> list[list[list[Hop]]]:
        """For every pair its two chains, through the key and through the query, the stronger first; empty if none."""
        by_branch = [self.chain(branch, level, head, i, j) for branch in ("key", "query")]
        pairs = zip(*by_branch, strict=True)
        return [sorted(chains, key=lambda chain: -chain[0].credit if chain else 0.0) for chains in pairs]

    def chain(self, branch: str, level: int, head: int, i: torch.Tensor, j: torch.Tensor) -> list[list[Hop]]:
        refinement = self.refinements[level]
        if refinement.gates[branch] == 0 or not len(i):
            return [[] for _ in i]
        credits = refinement.credits(branch, head, i, j)  # (H, P, T)
        of_token, tokens = credits.sum(0).max(-1)
        inner_heads = credits[:, torch.arange(len(i)), tokens].argmax(0)
        gatherers = j if branch == "key" else i
        hops = inner_heads, gatherers, tokens
        weights = refinement.inner.weights[hops]
        enough = (of_token > 0) & (of_token >= MIN_SHARE * self.rises(level, head, i, j))
        found = zip(*(part.tolist() for part in (tokens, inner_heads, weights, of_token, enough)), strict=True)
        chains = [[Hop(branch, level, *hop)] if explains else [] for *hop, explains in found]
        # Where the gathering is itself new, the stronger of its own two chains follows.
        new = enough & (weights - self.calls[0].weights[hops] >= MIN_GAIN)
        for inner_head in inner_heads[new].unique().tolist():
            (numbers,) = (new & (inner_heads == inner_head)).nonzero(as_tuple=True)
            further = self.chains(level - 1, inner_head, gatherers[numbers], tokens[numbers])
            for number, (stronger, _) in zip(numbers.tolist(), further, strict=True):
                chains[number] += stronger
        return chains
