"""
The paths of a layer: for what its last level attends to and its first did not, which token the query or the key
gathered that from, and at order 3 and beyond what *that* gathering goes back to, level by level.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .credits import Call, Refinement

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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class PathFinder:
    """For one layer of order 2 or more."""

    def __init__(self, attention, hidden_states, position_embeddings, calls: list[Call]):
        self.calls = calls
        self.refinements = [None] + [
            Refinement(attention, hidden_states, position_embeddings, calls, level) for level in range(1, len(calls))
        ]

    def paths(self, head: int) -> list[Path]:
        """Those of one head, by rows, the largest gains of a row first."""
        last = len(self.calls) - 1
        gains = self.gains(last, head)
        values, targets = gains.topk(min(MAX_PATHS, gains.shape[1]), dim=1)
        rows, ranks = (values >= MIN_GAIN).nonzero(as_tuple=True)
        paths = []
        for i, j in zip(rows.split(PAIRS_AT_ONCE), targets[rows, ranks].split(PAIRS_AT_ONCE), strict=True):
            chains = self.chains(last, head, i, j)
            for n, (row, target) in enumerate(zip(i.tolist(), j.tolist(), strict=True)):
                gain = gains[row, target].item()
                paths.append(Path(row, target, gain, [chain for chain in chains[n] if chain]))
        return paths

    def gains(self, level: int, head: int) -> torch.Tensor:
        """What a level attends to beyond the first one, (T, T)."""
        return self.calls[level].weights[head] - self.calls[0].weights[head]

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
        if refinement.gates[branch] == 0:
            return [[] for _ in i]
        refined = refinement.head(head)
        credits = refined.credits(branch, i, j)  # (P, H, T)
        of_token, tokens = credits.sum(1).max(-1)
        inner_heads = credits[torch.arange(len(i)), :, tokens].argmax(-1)
        gatherers = j if branch == "key" else i
        weights = refinement.inner.weights[inner_heads, gatherers, tokens]
        enough = (of_token > 0) & (of_token >= MIN_SHARE * self.rises(level, head, i, j))
        chains = [
            [Hop(branch, level, token, inner_head, weight, credit)] if explains else []
            for token, inner_head, weight, credit, explains in zip(
                *(part.tolist() for part in (tokens, inner_heads, weights, of_token, enough)), strict=True
            )
        ]
        if level > 1:
            self.prolong(chains, level - 1, gatherers)
        return chains

    def prolong(self, chains: list[list[Hop]], level: int, gatherers: torch.Tensor) -> None:
        """Where the gathering is itself new, the stronger of its own two chains follows."""
        by_head: dict[int, list[int]] = {}
        for number, chain in enumerate(chains):
            if chain and self.gains(level, chain[0].head)[gatherers[number], chain[0].token] >= MIN_GAIN:
                by_head.setdefault(chain[0].head, []).append(number)
        for head, numbers in by_head.items():
            i = gatherers[numbers]
            j = torch.tensor([chains[number][0].token for number in numbers])
            for number, further in zip(numbers, self.chains(level, head, i, j), strict=True):
                chains[number] += further[0]
