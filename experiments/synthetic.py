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
MASK = 24  # of `masked_facts`
GUESSES = {"masked facts": 0.21, "assignments": 1 / 3, "two hops": 0.25, "moves": 0.42}  # right without a look-up


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


def masked_facts(facts: int, asked: int, batch: int, generator: torch.Generator) -> Batch:
    """
    For models that see both sides. Facts `a b v`, each a value that two names give only together: a is 0 to 3, b is 4
    to 7, and of the 16 pairs of names each sequence takes some. `asked` facts come twice, once with the value masked
    (24): it is asked there. Values are 8 to 23. All stand in random order, so that a fact may follow its question.
    """
    pairs = torch.rand(batch, 16, generator=generator).argsort(1)[:, :facts]
    values = torch.randint(8, 24, (batch, facts), generator=generator)
    names = torch.stack((pairs // 4, 4 + pairs % 4), 2)
    known = torch.cat((names, values.unsqueeze(2)), 2)  # (batch, facts, 3)
    questions = torch.cat((names, torch.full((batch, facts, 1), MASK)), 2)[:, :asked]
    labels = torch.full_like(known, IGNORED)
    of_questions = torch.cat((labels[..., :2], values.unsqueeze(2)), 2)[:, :asked]
    order = torch.rand(batch, facts + asked, generator=generator).argsort(1).unsqueeze(2).expand(-1, -1, 3)
    ids, labels = torch.cat((known, questions), 1), torch.cat((labels, of_questions), 1)
    return ids.gather(1, order).flatten(1), labels.gather(1, order).flatten(1)


def assignments(
    statements: int, chains: int, asked: int, batch: int, generator: torch.Generator, only: int | None = None
) -> Batch:
    """
    Code-like text: statements `x 7 ;` or `y x ;`, then questions `? y`. The first statements give a variable (0 to 15)
    a value (16 to 31) and begin a chain each; every other one gives a new variable that of the last in some chain, so
    that a question takes as many look-ups as its variable is far down its chain. `only` asks those of so many. `;` is
    32, `?` is 33. Without looking, one answer in `chains` is right, whatever the number of look-ups.
    """
    variables = torch.rand(batch, NAMES, generator=generator).argsort(1)[:, :statements]
    values = NAMES + torch.rand(batch, NAMES, generator=generator).argsort(1)[:, :chains]
    further = torch.randint(chains, (batch, statements - chains), generator=generator)
    chain = torch.cat((torch.arange(chains).expand(batch, -1), further), 1)  # of each statement
    given, last = torch.empty_like(chain), values.clone()
    for place in range(statements):
        here = chain[:, place : place + 1]
        given[:, place : place + 1] = last.gather(1, here)
        last.scatter_(1, here, variables[:, place : place + 1])
    text = torch.stack((variables, given, torch.full_like(given, 2 * NAMES)), 2).flatten(1)
    answers = values.gather(1, chain)
    if only is not None:
        look_ups = (chain.unsqueeze(2) == chain.unsqueeze(1)).tril().sum(2)
        answers = answers.masked_fill(look_ups != only, IGNORED)
    return with_questions(text, variables, answers, asked, 2 * NAMES + 1, generator)


def moves(updates: int, batch: int, generator: torch.Generator) -> Batch:
    """
    A world that changes: `o b ;` puts an object (0 to 5) into a box (6 to 9), `b p ;` takes a box to a place (10 to
    17). First each object and each box is put somewhere, in random order, then there are updates, and at the end the
    place of each object is asked, `? o`. `;` is 18, `?` is 19.
    """
    objects, boxes, places = 6, 4, 8
    first = torch.rand(batch, objects + boxes, generator=generator).argsort(1)
    moved = torch.cat((first, torch.randint(objects + boxes, (batch, updates), generator=generator)), 1)
    to_box = torch.randint(objects, objects + boxes, moved.shape, generator=generator)
    to_place = objects + boxes + torch.randint(places, moved.shape, generator=generator)
    target = torch.where(moved < objects, to_box, to_place)
    where = torch.zeros(batch, objects + boxes, dtype=torch.long)
    for step in range(moved.shape[1]):
        where.scatter_(1, moved[:, step : step + 1], target[:, step : step + 1])
    text = torch.stack((moved, target, torch.full_like(moved, 18)), 2).flatten(1)
    asked = torch.arange(objects).expand(batch, -1)
    return with_questions(text, asked, where.gather(1, where[:, :objects]), objects, 19, generator)


def with_questions(
    text: torch.Tensor, names: torch.Tensor, answers: torch.Tensor, asked: int, mark: int, generator: torch.Generator
) -> Batch:
    """Appends `mark name` for some of the names, (batch, names), in random order. Answers are no part of the text."""
    chosen = torch.rand(names.shape, generator=generator).argsort(1)[:, :asked]
    questions = torch.stack((torch.full_like(chosen, mark), names.gather(1, chosen)), 2).flatten(1)
    ids = torch.cat((text, questions), 1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, text.shape[1] + 1 :: 2] = answers.gather(1, chosen)
    return ids, labels


def two_hops(entities: int, asked: int, batch: int, generator: torch.Generator) -> Batch:
    """
    A small graph: facts `a r b` about some of 16 entities (0 to 15), one for each of them and each of two relations (16
    and 17), in random order. Then questions `a r s`: what is s of r of a?

    Each relation leads through all entities in a circle: were b drawn freely, the most frequent one would be a guess.
    """
    names = torch.rand(batch, NAMES, generator=generator).argsort(1)[:, :entities]
    circle = torch.rand(batch, 2, entities, generator=generator).argsort(2)
    target = torch.empty_like(circle).scatter(2, circle, circle.roll(-1, 2))
    target = target.transpose(1, 2).flatten(1)  # of entity e and relation r at 2 e + r
    subject = torch.arange(2 * entities).expand(batch, -1)
    facts = torch.stack((names.gather(1, subject // 2), NAMES + subject % 2, names.gather(1, target)), 2)
    order = torch.rand(batch, 2 * entities, generator=generator).argsort(1).unsqueeze(2).expand(-1, -1, 3)
    start = torch.rand(batch, 2 * entities, generator=generator).argsort(1)[:, :asked]
    second = torch.randint(2, start.shape, generator=generator)
    end = target.gather(1, 2 * target.gather(1, start) + second)
    questions = torch.stack((names.gather(1, start // 2), NAMES + start % 2, NAMES + second), 2)
    ids = torch.cat((facts.gather(1, order).flatten(1), questions.flatten(1)), 1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, 6 * entities + 2 :: 3] = names.gather(1, end)
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
