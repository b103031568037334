"""
How far do inner levels have to see? `python -m experiments window`.

Eq. 12 with inner levels that attend to the last 4, 16, 64 or 256 tokens only, or to all. Language modelling of
Shakespeare's works in blocks of 512 tokens, first layer nested, with the training FLOPs of the standard model; there a
learning rate is chosen for each window with one seed, out of the same two. Associative recall and induction with one
layer, and pointer chasing with two, both nested, for the same steps and with one rate for all: for recall the best
without a window, for the other two the best of the form with W_O. Then there are three seeds.
"""

from argparse import Namespace

import torch

from common import costs
from nexus_transformers import NexusConfig, NexusForCausalLM

from . import figures, hops, language, recall
from .models import parameters
from .runs import Advance, Experiment, best_by, by_settings, of_seeds, over_seeds

BUDGET = 2.0  # CPU hours
STANDARD, ALL = "standard", "no window"
WINDOWS = {ALL: None, "window 4": 4, "window 16": 16, "window 64": 64, "window 256": 256}
SHORT = [ALL, "window 4", "window 16", "window 64"]  # no sequence is longer than 128
HOPS = SHORT[:3]  # whose sequences have 40 tokens
ROWS = {"language": [STANDARD, *WINDOWS], "recall": SHORT, "induction": SHORT, "hops": HOPS}
RATES = {"language": [2e-3, 4e-3], "recall": [8e-3], "induction": [1.6e-2], "hops": [2e-3]}
# language: of the standard model
STEPS = {"language": 300, "recall": 2000, "induction": recall.STEPS["induction"], "hops": hops.STEPS}
TESTED = {"recall": [8, 32], "induction": [8, 64]}  # pairs; tokens that are copied
SEEDS = [0, 1, 2]
LENGTH = 512  # of language modelling, in batches of as many tokens as the other experiments'
SIZE = language.SIZES["small"]
ARCHITECTURE = {
    "language": language.architecture(SIZE) | {"num_layers": SIZE["layers"], "max_position_embeddings": LENGTH},
    "recall": recall.architecture(recall.WIDTH) | {"num_layers": 1},
    "induction": recall.architecture(recall.WIDTH) | {"num_layers": 1},
    "hops": hops.ARCHITECTURE | {"num_layers": 2, "attention_order": 2},
}


def config(task: str, row: str) -> NexusConfig:
    """By default the first layer is nested."""
    nesting = {"attention_order": 1} if row == STANDARD else {"inner_window": WINDOWS[row]}
    return NexusConfig(**ARCHITECTURE[task] | nesting, bos_token_id=None, eos_token_id=None)


def training_flops(row: str) -> int:
    """Of one step of language modelling."""
    return costs.flops(config("language", row), language.BATCH // 2, LENGTH, training=True)["total"]


def settings(task: str, row: str, rate: float, seed: int, quick: bool) -> dict:
    steps = 4 if quick else STEPS[task]
    if task == "language":
        steps = round(steps * training_flops(STANDARD) / training_flops(row))
    return {"task": task, "row": row, "steps": steps, "learning_rate": rate, "seed": seed}


def one_run(run: dict, advance: Advance) -> dict:
    task = run["task"]
    model = NexusForCausalLM(config(task, run["row"]))
    fresh = torch.Generator().manual_seed(10_000 + run["seed"])
    if task == "language":
        result = language.learn(model, run, advance, LENGTH)
        flops = {"training_flops": run["steps"] * training_flops(run["row"])}
        return {"score": result["bits_per_byte"], "parameters": parameters(model)} | flops
    if task == "hops":
        _, right = hops.learn(model, run, advance)
    else:
        _, right = recall.learn(model, run, advance, TESTED[task], fresh)
    return {"accuracy": right, "score": -sum(right.values()), "parameters": parameters(model)}


def main(options: Namespace) -> dict:
    experiment = Experiment("window", BUDGET, options, one_run, summarise)
    for task, rows in ROWS.items():
        for row in rows[:2] if options.quick else rows:  # one after another: a row is whole as soon as it is there
            rates = RATES[task][: 1 if options.quick else None]
            screen = [settings(task, row, rate, SEEDS[0], options.quick) for rate in rates]
            (best,) = best_by(experiment.run(f"{task}, {row}: learning rates", screen), "score", ("row",)).values()
            seeds = [best | {"seed": seed} for seed in SEEDS[: 1 if options.quick else None]]
            experiment.run(f"{task}, {row}: seeds", seeds)
    report = experiment.finish()
    figures.window(report, experiment.path.with_suffix(".png"))
    return report


def summarise(stages: dict[str, list[dict]]) -> dict[str, dict]:
    """Per task and window: bits per byte, or accuracies, over the seeds."""
    summary: dict[str, dict] = {}
    for (task, row), same in by_settings(of_seeds(stages), "task", "row").items():
        run, result = same[0]["settings"], same[0]["result"]
        found = {"learning_rate": run["learning_rate"], "steps": run["steps"], "parameters": result["parameters"]}
        if task == "language":
            found["bits_per_byte"] = over_seeds(same, "score")
        else:
            found["accuracy"] = {size: over_seeds(same, "accuracy", size) for size in result["accuracy"]}
        summary.setdefault(task, {})[row] = found
    return summary
