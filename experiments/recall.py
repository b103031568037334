"""
One layer, several hops: associative recall and induction with one and two layers, `python -m experiments recall`.

In both tasks the answer stands after an earlier copy of the token that asks for it. Standard attention needs two layers
for that (one to tell each token what came before it, one to look it up); a layer of order 2 has both in itself. All
models are 64 wide with 4 heads unless said. A learning rate is chosen for each of them with one seed, out of the same
three (for induction four); then there are three seeds. Nested models have Eq. 12 without W_O, the default, unless said.
"""

import random
from argparse import Namespace

import torch

from . import figures
from .models import build, parameters, training_flops
from .runs import Advance, Experiment, best_by, by_settings, over_seeds
from .synthetic import IGNORED, SYMBOLS, Batch, accuracy, induction, recall, train

BUDGET = 2.5  # CPU hours
WIDTH, HEADS = 64, 4
LEARNING_RATES = {"recall": [2e-3, 4e-3, 8e-3], "induction": [2e-3, 4e-3, 8e-3, 1.6e-2]}
SEEDS = [0, 1, 2]
# Pairs of recall, and tokens that induction copies: those of the test. Each batch of training draws a number from the
# smallest to the largest: with a few fixed lengths the copy is always the same distance away, and position is enough.
TESTED = {"recall": [2, 4, 8, 16, 32], "induction": [8, 16, 32, 64]}
STEPS = {"recall": 2000, "induction": 1200}
BATCH = 32
TASKS = {"recall": recall, "induction": induction}
# Name of the row: variant, layers, width, and by how much longer it is trained.
ROWS = {
    "1 layer, standard": ("standard", 1, WIDTH, 1.0),
    "1 layer, order 2": ("order 2", 1, WIDTH, 1.0),
    "1 layer, order 2, with W_O": ("order 2, with W_O", 1, WIDTH, 1.0),
    "1 layer, separate": ("separate", 1, WIDTH, 1.0),
    "1 layer, order 3": ("order 3", 1, WIDTH, 1.0),
    "1 layer, order 2, queries only": ("order 2, queries only", 1, WIDTH, 1.0),
    "1 layer, order 2, keys only": ("order 2, keys only", 1, WIDTH, 1.0),
    "1 layer, inside heads": ("inside heads", 1, WIDTH, 1.0),
    "1 layer, looped": ("looped", 1, WIDTH, 1.0),
    "1 layer, standard, wider": ("standard", 1, 2 * WIDTH, 1.0),
    "1 layer, standard, 3 x longer": ("standard", 1, WIDTH, 3.0),
    "2 layers, standard": ("standard", 2, WIDTH, 1.0),
    "2 layers, standard, 3 x longer": ("standard", 2, WIDTH, 3.0),
    "2 layers, order 2": ("order 2", 2, WIDTH, 1.0),
}
# Induction is the easier task: fewer rows will do.
INDUCTION_ROWS = [
    "1 layer, standard",
    "1 layer, order 2",
    "1 layer, order 2, with W_O",
    "1 layer, separate",
    "1 layer, order 3",
    "1 layer, looped",
    "1 layer, standard, 3 x longer",
    "2 layers, standard",
]
SHOWN = "1 layer, order 2"  # whose attention on a solved example is kept, of the first seed


def architecture(width: int) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": HEADS,
        "vocab_size": 2 * SYMBOLS,
        "max_position_embeddings": 128,
    }


def settings(task: str, row: str, learning_rate: float, seed: int, quick: bool) -> dict:
    variant, layers, width, longer = ROWS[row]
    steps = 5 if quick else STEPS[task]
    return {
        "task": task,
        "row": row,
        "variant": variant,
        "layers": layers,
        "width": width,
        "steps": round(steps * longer),
        "learning_rate": learning_rate,
        "seed": seed,
    }


def one_run(run: dict, advance: Advance) -> dict:
    model = build(run["variant"], run["layers"], **architecture(run["width"]))
    tested, fresh = TESTED[run["task"]], torch.Generator().manual_seed(10_000 + run["seed"])
    losses, right = learn(model, run, advance, tested, fresh)
    tokens = (tested[0] + tested[-1]) // 2 * (2 if run["task"] == "induction" else 4)  # in the mean
    cost = training_flops(run["variant"], run["layers"], BATCH, tokens, **architecture(run["width"]))
    shown = run["task"] == "recall" and run["row"] == SHOWN and run["seed"] == SEEDS[0]
    return {
        "accuracy": right,
        "mean_accuracy": sum(right.values()) / len(right),
        "loss": losses,
        "parameters": parameters(model),
        "training_flops": run["steps"] * cost,
        "example": solved_example(model, fresh) if shown else None,
    }


def learn(
    model: torch.nn.Module, run: dict, advance: Advance, tested: list[int], fresh: torch.Generator
) -> tuple[list[float], dict[str, float]]:
    """The losses, and the accuracy at the tested sizes."""
    task, choice, trained = TASKS[run["task"]], random.Random(run["seed"]), TESTED[run["task"]]

    def draw(generator: torch.Generator) -> Batch:
        return task(choice.randint(trained[0], trained[-1]), BATCH, generator)

    losses = train(model, draw, run["steps"], run["learning_rate"], run["seed"], advance)
    return losses, {str(size): accuracy(model, [task(size, 64, fresh) for _ in range(4)]) for size in tested}


@torch.no_grad()
def solved_example(model: torch.nn.Module, generator: torch.Generator) -> dict:
    """One text of four pairs: its tokens (keys A to D, values 1 to 4), the answers, and every attention map of it."""
    ids, labels = recall(4, 1, generator)
    model.set_attn_implementation("eager")
    outputs = model(input_ids=ids, use_cache=False, output_attentions=True)
    keys, values = ids[0, :8:2].tolist(), ids[0, 1:8:2].tolist()
    names = dict(zip(keys + values[::-1], "ABCD4321", strict=True))  # a value that comes twice has its first number
    known = labels != IGNORED
    return {
        "tokens": [names[token] for token in ids[0].tolist()],
        "right": bool((outputs.logits.argmax(-1) == labels)[known].all()),
        "levels": [attention[0].mul(100).round().int().tolist() for attention in outputs.attentions],  # H, T, T, in %
    }


def main(options: Namespace) -> dict:
    experiment = Experiment("recall", BUDGET, options, one_run)
    rows = [("recall", row) for row in ROWS] + [("induction", row) for row in INDUCTION_ROWS]
    rates, seeds = LEARNING_RATES, SEEDS
    if options.quick:
        rates, seeds = {task: each[:2] for task, each in rates.items()}, seeds[:2]
        rows = [(task, row) for task, row in rows if row in ("1 layer, standard", "1 layer, order 2")]
    screen = [settings(task, row, rate, seeds[0], options.quick) for task, row in rows for rate in rates[task]]
    best = best_by(experiment.run("learning rates", screen), "mean_accuracy", ("task", "row"), max).values()
    records = experiment.run("seeds", [run | {"seed": seed} for seed in seeds for run in best])
    (shown,) = (record for record in records if record["result"]["example"])
    example = shown["result"]["example"]
    report = experiment.finish(summarise(records) | {"value_to_key": value_to_key(example)})
    figures.recall(report, experiment.path.with_suffix(".png"))
    figures.recall_attention(example, experiment.path.with_name("recall_attention.png"))
    return report


def value_to_key(example: dict) -> list[float]:
    """For each inner head of the solved example, the share of a value's attention that its key gets."""
    values = range(1, 8, 2)
    return [sum(head[value][value - 1] for value in values) / 100 / len(values) for head in example["levels"][0]]


def summarise(records: list[dict]) -> dict:
    """Per task and row: accuracy by size over the seeds, parameters, and training compute over the standard layer's."""
    summary: dict = {}
    for (task, row), same in by_settings(records, "task", "row").items():
        run, result = same[0]["settings"], same[0]["result"]
        if task not in summary:  # whose first row is one standard layer
            base = result["training_flops"]
        summary.setdefault(task, {})[row] = {
            "accuracy": {size: over_seeds(same, "accuracy", size) for size in result["accuracy"]},
            **{key: run[key] for key in ("learning_rate", "steps", "width")},
            "parameters": result["parameters"],
            "relative_compute": round(result["training_flops"] / base, 3),
        }
    return summary
