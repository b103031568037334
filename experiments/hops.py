"""
Pointer chasing: how many hops can a model of some depth and order follow? `python -m experiments hops`.

A text lists the edges of a random permutation; questions name a start and a number of hops from 1 to 3. All models are
trained on all three, one after the other and then together, for the same number of steps, with the learning rate out of
the same two that is best in the mean of three seeds. The map shows accuracy for each depth, order and number of hops;
`looped` applies each standard layer twice, with the same weights.
"""

import itertools
from argparse import Namespace

import torch

from . import figures
from .models import build, parameters, training_flops
from .runs import Advance, Experiment, by_settings, over_seeds
from .synthetic import NAMES as NODE_NAMES
from .synthetic import Batch, accuracy, hops, train

BUDGET = 2.5  # CPU hours
LAYERS, ORDERS = [1, 2, 3], [1, 2, 3]
NODES, MOST = 8, 3
STEPS, BATCH = 4000, 32
LEARNING_RATES = [2e-3, 4e-3]
SEEDS = [0, 1, 2]
ARCHITECTURE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": NODE_NAMES + MOST + 1,
    "max_position_embeddings": 5 * NODES,
}
NAMES = {1: "standard", 2: "order 2", 3: "order 3"}
FURTHER = [(1, "looped"), (2, "looped"), (2, "order 2, with W_O"), (2, "separate")]


def most_hops(share: float) -> int:
    """
    The most hops that are asked for when a share of the training is over: one in its first fifth, one more in every
    further fifth. Asked for all from the start, no model learned more than one hop in this time.
    """
    return min(MOST, 1 + int(5 * share))


def one_run(run: dict, advance: Advance) -> dict:
    model = build(run["variant"], run["layers"], **ARCHITECTURE)
    losses, right = learn(model, run, advance)
    cost = training_flops(run["variant"], run["layers"], BATCH, 5 * NODES, **ARCHITECTURE)
    return {
        "accuracy": right,
        "mean_accuracy": sum(right.values()) / len(right),
        "loss": losses,
        "parameters": parameters(model),
        "training_flops": run["steps"] * cost,
    }


def learn(model: torch.nn.Module, run: dict, advance: Advance) -> tuple[list[float], dict[str, float]]:
    """The losses, and the accuracy at each number of hops."""
    drawn = itertools.count()

    def draw(generator: torch.Generator) -> Batch:
        return hops(NODES, most_hops(next(drawn) / run["steps"]), BATCH, generator)

    losses = train(model, draw, run["steps"], run["learning_rate"], run["seed"], advance)
    fresh = torch.Generator().manual_seed(10_000 + run["seed"])
    return losses, {str(k): accuracy(model, [hops(NODES, MOST, 256, fresh, only=k)]) for k in range(1, MOST + 1)}


def main(options: Namespace) -> dict:
    experiment = Experiment("hops", BUDGET, options, one_run)
    steps, rates, seeds, layers = STEPS, LEARNING_RATES, SEEDS, LAYERS
    if options.quick:
        steps, rates, seeds, layers = 10, rates[:1], seeds[:2], LAYERS[:1]
    cells = [(depth, NAMES[order]) for depth in layers for order in ORDERS]
    cells += [cell for cell in FURTHER if cell[0] in layers]
    wanted = [
        {"variant": variant, "layers": depth, "steps": steps, "learning_rate": rate, "seed": seed}
        for depth, variant in cells
        for rate in rates
        for seed in seeds
    ]
    report = experiment.finish({"models": summarise(experiment.run("rates and seeds", wanted))})
    figures.hops(report, experiment.path.with_suffix(".png"), NODES)
    return report


def summarise(records: list[dict]) -> dict[str, dict]:
    """
    Per model, at its best rate: accuracy by number of hops over the seeds, parameters, and compute over one standard
    layer's. Beside it, the accuracy at each rate.
    """
    base, summary = records[0]["result"]["training_flops"], {}
    for (layers, variant), same in by_settings(records, "layers", "variant").items():
        rates = {rate: runs for (rate,), runs in by_settings(same, "learning_rate").items()}
        best = max(rates, key=lambda rate: over_seeds(rates[rate], "mean_accuracy")["mean"])
        result = rates[best][0]["result"]
        at_rates = {
            str(rate): {k: over_seeds(runs, "accuracy", k) for k in result["accuracy"]} for rate, runs in rates.items()
        }
        summary[f"{layers} layer{'s' if layers > 1 else ''}, {variant}"] = {
            "layers": layers,
            "variant": variant,
            "accuracy": at_rates[str(best)],
            "at_rates": at_rates,
            "learning_rate": best,
            "parameters": result["parameters"],
            "relative_compute": round(result["training_flops"] / base, 3),
        }
    return summary
