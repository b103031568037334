"""
Where nesting should pay: answers that take several look-ups. `python -m experiments chains`.

Three tasks (synthetic.py): chains of assignments, objects in boxes that are moved, and facts of a small graph asked at
two hops. A model of 1, 2 or 4 layers (4 for two hops) is trained on one task: standard, with a nested first
layer, or with all layers nested, whose inner levels see all tokens or four. All models of one depth have the training
FLOPs of the standard one. A learning rate is chosen for each with one seed, out of the same two; then there are three
seeds.
"""

from argparse import Namespace
from functools import partial

import torch

from common import costs
from nexus_transformers import NexusConfig, NexusForCausalLM

from . import figures
from .models import parameters
from .runs import Advance, Experiment, best_by, by_settings, of_seeds, over_seeds
from .synthetic import NAMES, accuracy, assignments, moves, train, two_hops

BUDGET = 3.0  # CPU hours
SEEDS, RATES = [0, 1, 2], [2e-3, 4e-3]
NESTED = {
    "standard": {"attention_order": 1},
    "first layer": {},  # the default
    "all layers": {"attention_order": 2},
    "all layers, window 4": {"attention_order": 2, "inner_window": 4},
}
STEPS, BATCH = 2000, 32  # steps of the standard models
LOOK_UPS = range(1, 7)  # of assignments
TASKS = {
    "assignments": partial(assignments, 12, 3, 6),
    "moves": partial(moves, 6),
    "two hops": partial(two_hops, 5, 6),
}
LAYERS = {1: [*TASKS], 2: [*TASKS], 4: ["two hops"]}  # the other two tasks stay at a guess, or at one look-up
ARCHITECTURE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 2 * NAMES + 2,
    "max_position_embeddings": 64,
}


def config(layers: int, nested: str) -> NexusConfig:
    shape = ARCHITECTURE | {"num_layers": layers, "bos_token_id": None, "eos_token_id": None}
    return NexusConfig(**shape, **NESTED[nested])


def training_flops(task: str, layers: int, nested: str) -> int:
    """Of one step."""
    ids, _ = TASKS[task](1, torch.Generator())
    return costs.flops(config(layers, nested), BATCH, ids.shape[1], training=True)["total"]


def settings(task: str, layers: int, nested: str, rate: float, seed: int, quick: bool) -> dict:
    """A run with the training FLOPs of the standard model of this depth."""
    share = training_flops(task, layers, "standard") / training_flops(task, layers, nested)
    steps = round((5 if quick else STEPS) * share)
    return {"task": task, "layers": layers, "nested": nested, "steps": steps, "learning_rate": rate, "seed": seed}


def one_run(run: dict, advance: Advance) -> dict:
    model = NexusForCausalLM(config(run["layers"], run["nested"]))
    draw = TASKS[run["task"]]
    losses = train(model, partial(draw, BATCH), run["steps"], run["learning_rate"], run["seed"], advance)
    fresh = torch.Generator().manual_seed(10_000 + run["seed"])
    flops = run["steps"] * training_flops(run["task"], run["layers"], run["nested"])
    found = {"accuracy": accuracy(model, [draw(256, fresh) for _ in range(4)])}
    if run["task"] == "assignments":
        found["by_look_ups"] = {
            str(each): accuracy(model, [draw(256, fresh, only=each) for _ in range(4)]) for each in LOOK_UPS
        }
    return found | {"loss": losses, "parameters": parameters(model), "training_flops": flops}


def main(options: Namespace) -> dict:
    experiment = Experiment("chains", BUDGET, options, one_run, summarise)
    depths, rates, seeds = LAYERS, RATES, SEEDS
    if options.quick:
        depths, rates, seeds = {1: LAYERS[1]}, RATES[:1], SEEDS[:1]
    for layers, tasks in depths.items():
        kinds = [nested for nested in NESTED if layers > 1 or nested != "first layer"]  # which would be all
        models = [(task, layers, nested) for task in tasks for nested in kinds]
        screen = [settings(*model, rate, seeds[0], options.quick) for model in models for rate in rates]
        tried = experiment.run(f"{layers} layers: learning rates", screen)
        best = best_by(tried, "accuracy", ("task", "nested"), max).values()
        experiment.run(f"{layers} layers: seeds", [run | {"seed": seed} for run in best for seed in seeds])
    report = experiment.finish()
    figures.chains(report, experiment.path.with_suffix(".png"))
    return report


def label(nested: str) -> str:
    return nested if nested == "standard" else f"nested: {nested}"


def summarise(stages: dict[str, list[dict]]) -> dict[str, dict]:
    """Per task, depth and nesting: accuracy over the seeds."""
    summary: dict[str, dict] = {}
    for (task, layers, nested), same in by_settings(of_seeds(stages), "task", "layers", "nested").items():
        run, result = same[0]["settings"], same[0]["result"]
        summary.setdefault(task, {})[f"{layers} layer{'s' if layers > 1 else ''}, {label(nested)}"] = {
            "accuracy": over_seeds(same, "accuracy"),
            "by_look_ups": {each: over_seeds(same, "by_look_ups", each) for each in result.get("by_look_ups", ())},
            "learning_rate": run["learning_rate"],
            "steps": run["steps"],
            "parameters": result["parameters"],
        }
    return summary
