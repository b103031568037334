"""
Retrofit: does a pretrained model gain from nesting? `python -m experiments retrofit`.

SmolLM2-135M-Instruct, converted to order 2 with closed gates, is trained on Shakespeare and on reasoning tasks, beside
the model it comes from: everything, LoRA adapters, or two scalars per layer (gates; the control has a temperature of
the queries and one of the keys). Learning rates are chosen by validation loss with one seed, out of as many for the
nested model as for its rival; then there are three seeds, at equal steps and at equal training FLOPs. Last come
recipes: how best to train the gates.

The stages stand in the order of their importance, and so do the runs in them. Stopped at any time, the results file has
a summary of what is done by then, and the same command continues.
"""

from argparse import Namespace
from functools import partial
from pathlib import Path

from ..runs import Experiment, best_by
from .report import plot, summarise
from .tasks import REASONING, TEXT, prepare, rows
from .training import config_of, one_run, step_flops

BUDGET = 4.5  # CPU hours
STEPS = {"smollm2": 40, "toy": 4}
BATCH = {TEXT: 1, REASONING: 3}  # rows: a block of 256 tokens, or questions of 84 on average
SEEDS = [0, 1, 2]
# What is trained, and the order of the model it is trained in.
METHODS = {
    "source, everything": ("everything", 1),
    "order 2, everything": ("everything", 2),
    "source, LoRA": ("LoRA", 1),
    "order 2, LoRA + gates": ("LoRA + gates", 2),
    "source, temperatures": ("temperatures", 1),
    "order 2, gates": ("gates", 2),
}
# LoRA on the order 2 with gates that stay closed is LoRA on the source: the same function, the same gradients.
RIVALS = {
    "order 2, everything": "source, everything",
    "order 2, LoRA + gates": "source, LoRA",
    "order 2, gates": "source, temperatures",
}
LEARNING_RATES = {
    "everything": [3e-5, 1e-4, 3e-4],
    "LoRA": [3e-4, 1e-3, 3e-3, 1e-2],
    "scalars": [3e-3, 1e-2, 3e-2, 1e-1],
}
GATE_RATE = 3e-3  # of gates beside other parameters; recipes vary it
NESTED, PLAIN = "order 2, everything", "source, everything"
CORPORA = (TEXT, REASONING)


def settings(corpus: str, method: str, rate: float, seed: int, model: str) -> dict:
    """One run. `rate` is the learning rate of the weights or adapters, or of the scalars where they are alone."""
    trained, order = METHODS[method]
    alone = trained in ("gates", "temperatures")
    return {
        "corpus": corpus,
        "method": method,
        "order": order,
        "trained": trained,
        "learning_rate": None if alone else rate,
        "scalar_learning_rate": rate if alone else GATE_RATE if order > 1 else None,
        "steps": STEPS[model],
        "batch": BATCH[corpus],
        "bf16": True,
        "seed": seed,
    }


def rates(method: str) -> list[float]:
    trained, _ = METHODS[method]
    return LEARNING_RATES["LoRA" if "LoRA" in trained else trained if trained == "everything" else "scalars"]


def untrained(corpus: str, order: int) -> dict:
    fields = {"corpus": corpus, "method": "source" if order == 1 else f"order {order}, gates closed", "order": order}
    return fields | {"trained": "nothing", "steps": 0, "batch": BATCH[corpus], "seed": 0}


def cost(folder: Path, run: dict) -> int:
    """Operations of one training step."""
    examples = rows(folder, run["corpus"], "train")
    return step_flops(config_of(folder, run["order"]), run["trained"], examples, run["batch"])


def longer(folder: Path, rival: dict, nested: dict) -> dict:
    """The rival's run with as many steps as cost what the nested model's run does."""
    steps = round(nested["steps"] * cost(folder, nested) / cost(folder, rival))
    return rival | {"method": f"{rival['method']}, longer", "steps": steps}


def recipes(run: dict, layers: int) -> list[dict]:
    """Changes, one at a time, to a run of the nested model in which everything is trained."""
    third = layers // 3
    parts = {
        "first layer": range(1),
        "first third": range(third),
        "middle third": range(third, 2 * third),
        "last third": range(2 * third, layers),
    }
    changes = {
        f"{name} nested": {"order": [2 if layer in nested else 1 for layer in range(layers)]}
        for name, nested in parts.items()
    }
    changes |= {
        "gates 3 x faster": {"scalar_learning_rate": GATE_RATE * 3},
        "gates 3 x slower": {"scalar_learning_rate": GATE_RATE / 3},
        "gates from 0.03": {"gate_start": 0.03},
        "gates alone for a third": {"gates_alone": 1 / 3},
        "order 3": {"order": 3},
    }
    return [run | {"method": f"{run['method']}, {name}"} | change for name, change in changes.items()]


def finer_rates(run: dict) -> list[dict]:
    """The source's share of the search for a recipe: learning rates between and beyond those of the sweep."""
    return [
        run | {"method": f"{run['method']}, rate x {factor}", "learning_rate": factor * run["learning_rate"]}
        for factor in (0.5, 0.7, 1.4, 2.0)
    ]


class Retrofit:
    """The experiment's stages."""

    def __init__(self, options: Namespace):
        self.quick = options.quick
        self.model = "toy" if self.quick else "smollm2"
        self.seeds = SEEDS[:2] if self.quick else SEEDS
        self.folder = prepare(self.model, options.out / "toy" if self.quick else None)
        self.winners: list[tuple[str, str, str]] = []  # corpus, best recipe of the nested model, its rival
        make, summary = partial(one_run, str(self.folder)), partial(summarise, rivals=RIVALS, recipes=self.winners)
        self.experiment = Experiment("retrofit", BUDGET, options, make, summary)
        self.stage = self.experiment.run

    def run(self) -> dict:
        sweep = [untrained(corpus, order) for corpus in CORPORA for order in (1, 2)]
        sweep += [
            settings(corpus, method, rate, self.seeds[0], self.model)
            for method in METHODS
            for corpus in CORPORA
            for rate in (rates(method)[:2] if self.quick else rates(method))
        ]
        records = [each for each in self.stage("learning rates", sweep) if each["settings"]["steps"] > 0]
        tuned = best_by(records, "validation_loss", ("corpus", "method"))
        longest = {
            (corpus, rival): longer(self.folder, tuned[corpus, rival], tuned[corpus, nested])
            for nested, rival in RIVALS.items()
            for corpus in CORPORA
        }
        wanted = [run | {"seed": seed} for each in (tuned, longest) for seed in self.seeds for run in each.values()]
        self.stage("equal steps, equal compute", wanted)
        self.search(tuned, longest)
        report = self.experiment.finish()
        plot(report["summary"], self.experiment.path.with_suffix(".png"))
        return report

    def search(self, tuned: dict, longest: dict) -> None:
        """
        For the best way to train everything in the nested model with one seed, and as well for that of the source; then
        the winners with all seeds, at the training FLOPs of the nested one.
        """
        layers = config_of(self.folder, 1).num_layers
        nested, source = [], []
        for corpus in CORPORA:
            nested += recipes(tuned[corpus, NESTED], layers)[-1 if self.quick else 0 :]
            source += finer_rates(longest[corpus, PLAIN])[-1 if self.quick else 0 :]
        records = self.stage("recipes", nested + source) + self.experiment.stages["equal steps, equal compute"]
        first = [record for record in records if record["settings"]["seed"] == self.seeds[0]]
        best = {
            start: best_by(
                [each for each in first if each["settings"]["method"].startswith(start)], "validation_loss", ("corpus",)
            )
            for start in (NESTED, f"{PLAIN}, longer")
        }
        wanted = []
        for corpus in CORPORA:
            winner, rival = (runs[(corpus,)] for runs in best.values())
            fitted = longer(self.folder, rival | {"method": f"{PLAIN}, for the best recipe"}, winner)
            rival = rival if fitted["steps"] == rival["steps"] else fitted
            self.winners.append((corpus, winner["method"], rival["method"]))
            wanted += [run | {"seed": seed} for run in (winner, rival) for seed in self.seeds]
        self.stage("best recipe", wanted)


def main(options: Namespace) -> dict:
    return Retrofit(options).run()
