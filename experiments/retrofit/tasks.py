"""
What the retrofit experiment trains on and is judged by: real text and three reasoning tasks of `reasoning-gym`.

Everything is a row {"ids", "asked"}: a sequence of which the last `asked` tokens are predicted. A block of text asks
all but its first token, a task its answer only. All is made once, from fixed seeds, and kept as token ids beside the
converted model.
"""

import json
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

import torch
from transformers import AutoTokenizer

from common.report import write
from common.texts import CACHE, shakespeare

from ..converted import convert

IGNORED = -100  # label of positions that are not asked
Row = dict  # {"ids": list[int], "asked": int}
TEXT, REASONING, OTHER = "Shakespeare", "reasoning", "Python documentation"
SYSTEM = "Answer briefly."  # in place of the template's own system message, which is longer

EXPLAINED = "Solve the following task:\n"  # before it a task explains itself, at length and always in the same words

# The datasets of reasoning-gym that are nearest to chained deduction, family trees and paths in graphs, in the sizes
# that keep a prompt short.
TASKS = {
    "deduction": ("knights_knaves", {"n_people": 2, "depth_constraint": 2, "width_constraint": 2}),
    "family tree": ("family_relationships", {"min_family_size": 4, "max_family_size": 6}),
    "graph path": ("path_star", {"degree": 2, "node_range": 10, "min_path_length": 3, "max_path_length": 3}),
}
SIZES = {  # blocks of text and their tokens; examples per task, and the longest that is taken
    "smollm2": {"length": 256, "train": 480, "validation": 8, "test": 16, "longest": 160}
    | {"task_train": 500, "task_validation": 16, "task_test": 40},
    "toy": {"length": 64, "train": 24, "validation": 2, "test": 4, "longest": 500}
    | {"task_train": 8, "task_validation": 2, "task_test": 3},
}


def prepare(name: str, folder: Path | None = None) -> Path:
    """
    A folder with `model`, the source converted to order 2 with closed gates, and `data.json`. What is there already is
    kept, except data that was made with other sizes or tasks.

    Args:
        name: "smollm2", downloaded and converted, or "toy", a random Llama, converted just as really.
    """
    folder = folder or CACHE / "evidence" / f"retrofit-{name}"
    convert(name, folder)
    made_with = json.loads(json.dumps({"sizes": SIZES[name], "tasks": TASKS, "system": SYSTEM, "explained": EXPLAINED}))
    file = folder / "data.json"
    if not file.exists() or json.loads(file.read_text())["made_with"] != made_with:
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        text = documentation(half=1) if name == "toy" else works_of_shakespeare()  # the former downloads nothing
        texts = {TEXT: text, OTHER: documentation()}
        data = {kind: text_rows(tokenizer, parts, SIZES[name]) for kind, parts in texts.items()}
        data[REASONING] = task_rows(tokenizer, SIZES[name])
        write(file, json.dumps({"made_with": made_with} | data))
    return folder


def rows(folder: Path, kind: str, part: str) -> list[Row]:
    return json.loads((folder / "data.json").read_text())[kind][part]


def works_of_shakespeare() -> dict[str, list[str]]:
    """The works, by part: every sixth is held out, by turns for validation and for the test."""
    training, held_out = shakespeare()
    parts = {"train": training, "validation": held_out[1::2], "test": held_out[::2]}
    return {part: [file.read_bytes().decode() for file in chosen] for part, chosen in parts.items()}


def documentation(half: int = 0) -> dict[str, list[str]]:
    """Python's own documentation, as every Python carries it: one half of its documents, dealt out to the parts."""
    names = sorted(topics)
    random.Random(0).shuffle(names)
    names = names[half::2]
    if half == 0:  # the text that nothing is trained on: all of it for the test
        split = {"train": [], "validation": [], "test": names}
    else:
        split = {"train": names[8:], "validation": names[:4], "test": names[4:8]}
    return {part: [topics[name] for name in chosen] for part, chosen in split.items()}


def text_rows(tokenizer, texts: dict[str, list[str]], size: dict) -> dict[str, list[Row]]:
    """Blocks of `length` tokens, as many as each part has, spread evenly over its documents."""
    result = {}
    for part, documents in texts.items():
        ids = [token for text in documents for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
        starts = range(0, len(ids) - size["length"] + 1, size["length"])
        count = min(size[part], len(starts))
        chosen = [starts[i * len(starts) // count] for i in range(count)]
        result[part] = [{"ids": ids[i : i + size["length"]], "asked": size["length"] - 1} for i in chosen]
    return result


def task_rows(tokenizer, size: dict) -> dict[str, list[Row]]:
    """The tasks mixed, each with its name. No question of one part occurs in another, or twice."""
    seen: set[str] = set()
    result = {}
    for seed, part in enumerate(("test", "validation", "train")):
        result[part] = []
        for name in TASKS:
            wanted, taken = size[f"task_{part}"], []
            for example in islice(examples(name, 1_000_000 * seed), 4 * wanted):
                row = task_row(tokenizer, example) | {"task": name}
                if len(taken) < wanted and example["question"] not in seen and len(row["ids"]) <= size["longest"]:
                    seen.add(example["question"])
                    taken.append(row)
            if len(taken) < wanted:
                sys.exit(f"retrofit: too few questions of '{name}' have at most {size['longest']} tokens.")
            result[part] += taken
    return result


def examples(name: str, seed: int) -> Iterator[dict]:
    """Endless: {"question", "answer", …} of a task. Item i of a dataset depends on seed + i alone."""
    try:
        import reasoning_gym
    except ImportError:
        sys.exit("retrofit: the tasks need reasoning-gym (Python 3.11): pip install 'nexus-transformers[evidence]'.")
    dataset, fields = TASKS[name]
    made = reasoning_gym.create_dataset(dataset, seed=seed, size=1_000_000, **fields)
    for i in range(len(made)):
        yield made[i]


def task_row(tokenizer, example: dict) -> Row:
    """The question as a chat; asked is the answer with the token that ends the assistant's turn."""
    *_, question = example["question"].split(EXPLAINED)
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question.strip()}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    answer = tokenizer(example["answer"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return {"ids": tokenizer(prompt, add_special_tokens=False)["input_ids"] + answer, "asked": len(answer)}


def collate(batch: list[Row]) -> dict:
    """
    Rows -> what a causal model takes. Padded on the left, so that the asked tokens stand at the end of every row and
    the head need not compute the others: `labels` are those of the last `logits_to_keep` positions, (B, that many).
    """
    length = max(len(row["ids"]) for row in batch)
    kept = max(row["asked"] for row in batch) + 1  # the token before the first that is asked predicts it
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full((len(batch), kept), IGNORED)
    for i, row in enumerate(batch):
        ids[i, -len(row["ids"]) :] = torch.tensor(row["ids"])
        mask[i, -len(row["ids"]) :] = 1
        labels[i, -row["asked"] :] = torch.tensor(row["ids"][-row["asked"] :])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "logits_to_keep": kept}


@torch.no_grad()
def measure(model: torch.nn.Module, chosen: list[Row], batch: int = 4) -> tuple[float, list[bool]]:
    """
    Loss in nats per asked token; and for each row whether its asked tokens are all the most probable ones, each after
    the true tokens before it. Then, and only then, does greedy decoding give that answer: up to its first mistake it
    sees the same tokens.
    """
    model.eval()
    loss = asked = 0.0
    exact = [False] * len(chosen)
    order = sorted(range(len(chosen)), key=lambda i: len(chosen[i]["ids"]))  # little padding
    for start in range(0, len(chosen), batch):
        which = order[start : start + batch]
        inputs = collate([chosen[i] for i in which])
        labels = inputs.pop("labels")[:, 1:]
        logits = model(**inputs, use_cache=False).logits[:, :-1].float()
        known = labels != IGNORED
        loss += torch.nn.functional.cross_entropy(logits[known], labels[known], reduction="sum").item()
        asked += known.sum().item()
        for i, right in zip(which, ((logits.argmax(-1) == labels) | ~known).all(1).tolist(), strict=True):
            exact[i] = right
    return loss / asked, exact
