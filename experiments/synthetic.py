"""
Tasks that need a known number of hops, and the loop that trains a small model on them.

Every batch is drawn anew, so training and test data never meet in practice; accuracy counts the answer positions only.
Token ids: what each task does with its alphabet is said in its docstring.
"""

from collections.abc import Callable

import torch
from transformers import get_cosine_schedule_with_warmup

from .models import optimizer
from .runs import Advance

IGNORED = -100  # label of positions that are not asked
Batch = tuple[torch.Tensor, torch.Tensor]  # ids and labels, (B, T) each; a label stands where its answer is predicted
SYMBOLS, NAMES = 64, 16  # sizes of the alphabets, the latter of pointer chasing


def recall(pairs: int, batch: int, generator: torch.Generator) -> Batch:
    """
    Associative recall: `k1 v1 k2 v2 ... kP vP`, then the same keys in another order, each to be answered by its value,
    which follows it: `k2 v2 k1 v1 ...`. Keys are 0 to 63 without repetition, values 64 to 127, drawn for each sequence.
    """
    keys = torch.rand(batch, SYMBOLS, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(SYMBOLS, 2 * SYMBOLS, (batch, pairs), generator=generator)
    order = torch.rand(batch, pairs, generator=generator).argsort(1)
    asked, answers = keys.gather(1, order), values.gather(1, order)
    ids = torch.cat((torch.stack((keys, values), 2).flatten(1), torch.stack((asked, answers), 2).flatten(1)), 1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, 2 * pairs :: 2] = answers
    return ids, labels


def induction(length: int, batch: int, generator: torch.Generator) -> Batch:
    """A sequence of `length` different tokens, then once more: every token but the first of the copy is asked."""
    once = torch.rand(batch, 2 * SYMBOLS, generator=generator).argsort(1)[:, :length]
    ids = torch.cat((once, once), 1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, length:-1] = once[:, 1:]
    return ids, labels


def hops(nodes: int, most: int, batch: int, generator: torch.Generator, only: int | None = None) -> Batch:
    """
    Pointer chasing: a random permutation f of the nodes as its edges `a f(a) ;` in random order, then questions `k a`:
    at `a` the answer is f applied k times. Nodes are 0 to 15 (of which each sequence takes some), `;` is 16; the number
    of hops k is token 16 + k, with k from 1 to `most`, or `only` that one. There are as many questions as nodes; their
    answers are not part of the sequence, so that none helps another.

    Without `;` the source of an edge would follow the target of another, and look like a target itself.
    """
    names = torch.rand(batch, NAMES, generator=generator).argsort(1)[:, :nodes]
    f = torch.rand(batch, nodes, generator=generator).argsort(1)
    edges = torch.rand(batch, nodes, generator=generator).argsort(1)
    ends = torch.full_like(edges, NAMES)
    edge_ids = torch.stack((names.gather(1, edges), names.gather(1, f.gather(1, edges)), ends), 2).flatten(1)
    k = torch.randint(1, most + 1, (batch, nodes), generator=generator)
    if only is not None:
        k = torch.full_like(k, only)
    start = torch.rand(batch, nodes, generator=generator).argsort(1)
    end = start
    for hop in range(1, most + 1):
        end = torch.where(hop <= k, f.gather(1, end), end)
    asked = torch.stack((NAMES + k, names.gather(1, start)), 2).flatten(1)
    ids = torch.cat((edge_ids, asked), 1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, 3 * nodes + 1 :: 2] = names.gather(1, end)
    return ids, labels


def marker(length: int, batch: int, generator: torch.Generator) -> Batch:
    """
    The simplest task that asks for context: random tokens 0 to 63, one of them after the marker 64, and at the end the
    question 65, to be answered by the token after the marker. `length` tokens in all.
    """
    ids = torch.randint(SYMBOLS, (batch, length), generator=generator)
    place = torch.randint(0, length - 2, (batch, 1), generator=generator)
    ids.scatter_(1, place, SYMBOLS)
    ids[:, -1] = SYMBOLS + 1
    labels = torch.full_like(ids, IGNORED)
    labels[:, -1:] = ids.gather(1, place + 1)
    return ids, labels


def train(
    model: torch.nn.Module,
    draw: Callable[[torch.Generator], Batch],
    steps: int,
    learning_rate: float,
    seed: int,
    advance: Advance = lambda share: None,
) -> list[float]:
    """
    Trains with AdamW: 5 % warm-up, then cosine to 0, gradients clipped at 1. Returns the training loss, in nats per
    answer, as 50 means along the way.
    """
    generator = torch.Generator().manual_seed(seed)
    adam = optimizer(model, learning_rate)
    schedule = get_cosine_schedule_with_warmup(adam, max(1, steps // 20), steps)
    losses = []
    model.train()
    for step in range(steps):
        loss = answer_loss(model, *draw(generator))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        schedule.step()
        losses.append(loss.item())
        advance((step + 1) / steps)
    size = max(1, steps // 50)
    return [round(sum(losses[i : i + size]) / len(losses[i : i + size]), 4) for i in range(0, steps, size)]


def answer_loss(model: torch.nn.Module, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at the answer positions. The head computes no others."""
    rows, positions = (labels != IGNORED).nonzero(as_tuple=True)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[rows, positions]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[rows, positions])


@torch.no_grad()
def accuracy(model: torch.nn.Module, batches: list[Batch]) -> float:
    """Share of the answers that are right, over all batches."""
    model.eval()
    right = asked = 0
    for ids, labels in batches:
        predicted = model(input_ids=ids, use_cache=False).logits.argmax(-1)
        known = labels != IGNORED
        right += (predicted == labels)[known].sum().item()
        asked += known.sum().item()
    return right / asked
