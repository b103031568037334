"""
Retrofit in the paper's form and in ours: `python -m experiments retrofit_forms`.

SmolLM2-135M-Instruct learns Shakespeare's works as in `retrofit`, for the training FLOPs of 40 and of 160 steps of the
source. The paper's own retrofit has "separate" inner layers that start at random, and neither gates nor a scale; ours
has Eq. 12, or such layers, behind gates that start closed. Everything is trained, or LoRA adapters and gates, at the
learning rates that `retrofit` found best for the source (and no worse for the nested model); "separate" chooses its
own, by validation loss with one seed.
"""

from argparse import Namespace
from functools import partial
from pathlib import Path

from . import loss_figures
from .retrofit import GATE_RATE
from .retrofit.tasks import TEXT, prepare, rows
from .retrofit.training import config_of, one_run, step_flops
from .runs import Experiment, best_by, by_settings, mean_and_spread, over_seeds

BUDGET = 2.8  # CPU hours
SEEDS, BATCH = [0, 1, 2], 1
STEPS, LONGER = {"smollm2": 40, "toy": 4}, 4
EVERYTHING, LORA = 1e-4, 3e-3  # learning rates
SEPARATE = {"inner_attention": "separate"}
PAPER = SEPARATE | {"inner_gate": False, "inner_scale": False}
# What is trained, share of the layers that are nested (from the first on), form, and learning rates to choose from.
ROWS = {
    "source": ("everything", 0.0, {}, [EVERYTHING]),
    "Eq. 12, all layers": ("everything", 1.0, {}, [EVERYTHING]),
    "Eq. 12, first third": ("everything", 1 / 3, {}, [EVERYTHING]),
    "Eq. 12, all layers, window 64": ("everything", 1.0, {"inner_window": 64}, [EVERYTHING]),
    "separate, all layers": ("everything", 1.0, SEPARATE, [EVERYTHING, 3 * EVERYTHING]),
    "separate, all layers, no gates, no scale": ("everything", 1.0, PAPER, [EVERYTHING, 3 * EVERYTHING]),
    "source, LoRA": ("LoRA", 0.0, {}, [LORA]),
    "Eq. 12, all layers, LoRA": ("LoRA + gates", 1.0, {}, [LORA]),
}
LONG = ["source", "Eq. 12, all layers", "separate, all layers, no gates, no scale"]


def settings(folder: Path, row: str, rate: float, seed: int, steps: int) -> dict:
    """A run with the training FLOPs of that many steps of the source, trained in the same way."""
    trained, share, form, _ = ROWS[row]
    layers = config_of(folder, 1).num_layers
    nested = round(share * layers)
    run = {"method": row, "corpus": TEXT, "trained": trained, "order": [2] * nested + [1] * (layers - nested)}
    source = run | {"trained": trained.removesuffix(" + gates"), "order": 1, "form": {}}
    run |= {"form": form}
    return run | {
        "steps": round(steps * cost(folder, source) / cost(folder, run)),
        "budget": steps,
        "batch": BATCH,
        "bf16": True,
        "learning_rate": rate,
        "scalar_learning_rate": GATE_RATE if nested and form.get("inner_gate", True) else None,
        "seed": seed,
    }


def cost(folder: Path, run: dict) -> int:
    """Operations of one training step."""
    return step_flops(config_of(folder, run["order"], run["form"]), run["trained"], rows(folder, TEXT, "train"), BATCH)


def main(options: Namespace) -> dict:
    name, seeds = ("toy", SEEDS[:1]) if options.quick else ("smollm2", SEEDS)
    folder = prepare(name, options.out / "toy" if options.quick else None)
    make = partial(settings, folder)
    experiment = Experiment("retrofit_forms", BUDGET, options, partial(one_run, str(folder)), summarise)
    untrained = make("source", EVERYTHING, seeds[0], 1) | {"method": "nothing", "steps": 0, "trained": "nothing"}
    experiment.run("before", [untrained])
    screen = [make(row, rate, seeds[0], STEPS[name]) for row in ROWS for rate in ROWS[row][-1]]
    best = best_by(experiment.run("learning rates", screen), "validation_loss", ("method",)).values()
    experiment.run("short", [run | {"seed": seed} for run in best for seed in seeds])
    longer = [make(run["method"], run["learning_rate"], 0, LONGER * STEPS[name]) for run in best]
    experiment.run("long", [run | {"seed": seed} for run in longer if run["method"] in LONG for seed in seeds])
    report = experiment.finish()
    loss_figures.retrofit_forms(report, experiment.path.with_suffix(".png"))
    return report


def rival(row: str) -> str:
    """The source, trained in the same way."""
    return "source, LoRA" if "LoRA" in row else "source"


def summarise(stages: dict[str, list[dict]]) -> dict:
    """The loss of the source, and per length and row what training for the same compute made of it, over the seeds."""
    (before,) = stages["before"]
    summary: dict = {"before": {name: before["result"][name] for name in ("loss", "other_loss")}}
    for length in ("short", "long"):
        rows = {row: same for (row,), same in by_settings(stages.get(length, []), "method").items()}
        summary |= {length: {row: describe(same, rows.get(rival(row)), before) for row, same in rows.items()}}
    return {name: found for name, found in summary.items() if found}


def describe(same: list[dict], rivals: list[dict] | None, before: dict) -> dict:
    """`gain` is by how much the loss is below that of the source, seed by seed; `forgotten` the rise on other text."""
    run, result = same[0]["settings"], same[0]["result"]
    rises = [each["result"]["other_loss"] - before["result"]["other_loss"] for each in same]
    gates = [abs(gate) for each in result["scalars"].values() for gate in each if gate is not None]
    found = {
        "loss": over_seeds(same, "loss"),
        "forgotten": mean_and_spread(rises),
        "learning_rate": run["learning_rate"],
        "steps": run["steps"],
        "trained_parameters": result["trained_parameters"],
        "training_flops": result["training_flops"],
        "widest_gate": max(gates, default=None),
    }
    if rivals and rivals != same and len(rivals) == len(same):
        pairs = zip(rivals, same, strict=True)
        found["gain"] = mean_and_spread([one["result"]["loss"] - other["result"]["loss"] for one, other in pairs])
    return found
