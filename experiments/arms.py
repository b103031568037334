"""
Table 2 of the paper, in small: its five arms and the baseline. `python -m experiments arms`.

The arms are the paper's own (paper/presets.py): every layer is nested, without a scale, and "separate" has weights of
its own in the inner levels. They learn Shakespeare's works, as in `scale`, for the same steps, which is the paper's
comparison, and with the training FLOPs of the baseline. Learning rates are chosen with one seed, out of the same two,
by the loss on files that are neither trained on nor reported.
"""

from argparse import Namespace

from common import costs
from nexus_transformers import NexusConfig, NexusForCausalLM

from . import loss_figures, scale
from .language import BATCH, HELD_OUT, LENGTH
from .paper.presets import ARMS
from .paper.table import TABLE_2
from .runs import Advance, Experiment, by_settings, over_seeds
from .scale import best_rate, learn, prepare, shape

BUDGET = 1.5  # CPU hours
SEEDS, RATES = [0, 1, 2], [2e-3, 4e-3]
BASELINE = "Baseline"
ROWS = {name: arm for arm, ((name, *_), _) in TABLE_2.items() if arm != "eq7"}
PAPER = {name: float(TABLE_2[arm][1].split()[-1]) / 100 for name, arm in ROWS.items()}  # mean accuracy of Pythia 70M
STEPS, COMPUTE = "equal steps", "equal compute"


def config(size: str, row: str) -> NexusConfig:
    return NexusConfig(**shape(size), **ARMS[ROWS[row]])


def training_flops(size: str, row: str) -> int:
    """Of one step."""
    return costs.flops(config(size, row), BATCH, LENGTH, training=True)["total"]


def settings(size: str, row: str, at: str, rate: float, seed: int) -> dict:
    steps = 4 if size == "toy" else scale.STEPS
    if at == COMPUTE:
        steps = round(steps * training_flops(size, BASELINE) / training_flops(size, row))
    return {"size": size, "row": row, "at": at, "steps": steps, "learning_rate": rate, "seed": seed}


def one_run(run: dict, advance: Advance) -> dict:
    found = learn(NexusForCausalLM(config(run["size"], run["row"])), run, prepare("Shakespeare"), advance)
    return found | {"training_flops": run["steps"] * training_flops(run["size"], run["row"])}


def main(options: Namespace) -> dict:
    experiment = Experiment("arms", BUDGET, options, one_run, summarise)
    size, rates, seeds = ("toy", RATES[:1], SEEDS[:1]) if options.quick else ("small", RATES, SEEDS)
    prepare("Shakespeare")
    screen = [settings(size, row, STEPS, rate, seeds[0]) for row in ROWS for rate in rates]
    tried = experiment.run("learning rates", screen)
    best = {row: best_rate(same) for (row,), same in by_settings(tried, "row").items()}
    for at, rows in {STEPS: list(ROWS), COMPUTE: list(ROWS)[1:]}.items():
        experiment.run(at, [settings(size, row, at, best[row], seed) for row in rows for seed in seeds])
    report = experiment.finish()
    loss_figures.arms(report, experiment.path.with_suffix(".png"))
    return report


def summarise(stages: dict[str, list[dict]]) -> dict[str, dict]:
    """Per arm: bits per byte at equal steps and at equal compute, over the seeds, and what it costs."""
    summary: dict[str, dict] = {}
    for at in (STEPS, COMPUTE):
        for (row,), same in by_settings(stages.get(at, []), "row").items():
            run, result = same[0]["settings"], same[0]["result"]
            same_at_both = {"learning_rate": run["learning_rate"], "parameters": result["parameters"]}
            found = summary.setdefault(row, {"paper": PAPER[row], **same_at_both})
            found[at] = {"bits_per_byte": over_seeds(same, HELD_OUT, "bits_per_byte"), "steps": run["steps"]}
            found[at]["training_flops"] = result["training_flops"]
    return summary
