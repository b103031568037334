"""
Which form of inner attention is the default: a short comparison, `python -m experiments forms`.

The paper leaves open what is between the levels (W_O, a scale) and how rotary embedding meets Eq. 7 to 9. Each form
learns Shakespeare's works (first layer nested, or all) with the training FLOPs of a short standard run, and associative
recall with one layer. Learning rates are chosen with one seed out of the same for each; then there are three
seeds. Runs are short: what holds here may not hold in long ones.
"""

from argparse import Namespace

import torch
from torch import nn

from common import costs
from nexus_transformers import NexusConfig, NexusForCausalLM

from . import language, models, recall
from .models import RotatedAtEachLevel, parameters
from .runs import Advance, Experiment, best_by, by_settings, of_seeds, over_seeds

BUDGET = 2.5  # CPU hours
SEPARATE, SELF = {"inner_attention": "separate"}, {"inner_attention": "self"}
FORMS = {
    "standard": {},
    "Eq. 12": {},
    "Eq. 12, no scale": {"inner_scale": False},
    "Eq. 12 with W_O": {"inner_output_projection": True},
    "separate": SEPARATE,
    "self, rotated once": SELF,
    "self, rotated once, no scale": {**SELF, "inner_scale": False},
    "self, rotated at each level": SELF,
    "self, rotated at each level, no scale": {**SELF, "inner_scale": False},
}
RATES = {"language": [2e-3, 4e-3, 8e-3], "recall": [4e-3, 8e-3]}
SEEDS = [0, 1, 2]
STEPS = {"language": 200, "recall": 2000}  # of the standard model
EVERYWHERE = ["Eq. 12", "Eq. 12 with W_O"]  # all layers, too
TESTED = [8, 32]  # pairs of recall
SHAPES = {
    "language": language.SIZES["small"] | language.architecture(language.SIZES["small"]),
    "recall": {"layers": 1} | recall.architecture(recall.WIDTH),
}


def config(task: str, form: str, nested: int) -> NexusConfig:
    fields = {"inner_output_projection": False} | SHAPES[task] | FORMS[form]
    return models.config([2] * nested, fields.pop("layers"), **fields)


def build(task: str, form: str, nested: int) -> nn.Module:
    model = NexusForCausalLM(config(task, form, nested))
    for layer in model.model.layers:
        if "rotated at each level" in form:
            layer.self_attn.__class__ = RotatedAtEachLevel
    return model


def training_flops(task: str, form: str, nested: int) -> int:
    """Of one step."""
    batch, length = (language.BATCH, language.LENGTH) if task == "language" else (recall.BATCH, 4 * sum(TESTED) // 2)
    return costs.flops(config(task, form, nested), batch, length, training=True)["total"]


def settings(task: str, form: str, nested: int, rate: float, quick: bool, seed: int = 0) -> dict:
    """A run: language with the training FLOPs of the standard model, recall with its steps."""
    steps = 4 if quick else STEPS[task]
    if task == "language":
        steps = round(steps * training_flops(task, "standard", 0) / training_flops(task, form, nested))
    return {"task": task, "form": form, "nested": nested, "steps": steps, "learning_rate": rate, "seed": seed}


def one_run(run: dict, advance: Advance) -> dict:
    model = build(run["task"], run["form"], run["nested"])
    flops = run["steps"] * training_flops(run["task"], run["form"], run["nested"])
    if run["task"] == "language":
        result = {"score": language.learn(model, run, advance)["bits_per_byte"]}
    else:
        fresh = torch.Generator().manual_seed(10_000 + run["seed"])
        _, right = recall.learn(model, run, advance, TESTED, fresh)
        result = {"accuracy": right, "score": -sum(right.values())}
    return result | {"parameters": parameters(model), "training_flops": flops}


def main(options: Namespace) -> dict:
    experiment = Experiment("forms", BUDGET, options, one_run, summarise)
    layers = {task: shape["layers"] for task, shape in SHAPES.items()}
    rows = [("language", form, int(form != "standard")) for form in FORMS]
    rows += [("language", form, layers["language"]) for form in EVERYWHERE]
    rows += [("recall", form, layers["recall"] * (form != "standard")) for form in FORMS]
    seeds = SEEDS
    if options.quick:
        few = ("standard", "Eq. 12", "self, rotated at each level")
        rows, seeds = [row for row in rows if row[1] in few], SEEDS[:1]
    for task, form, nested in rows:  # one after another, so that each row is whole as soon as it is there
        screen = [
            settings(task, form, nested, rate, options.quick) for rate in RATES[task][: 1 if options.quick else None]
        ]
        tried = experiment.run(f"{task}, {form}, {nested} nested: learning rates", screen)
        (best,) = best_by(tried, "score", ("form",)).values()
        experiment.run(f"{task}, {form}, {nested} nested: seeds", [best | {"seed": seed} for seed in seeds])
    return experiment.finish()


def summarise(stages: dict[str, list[dict]]) -> list[dict]:
    """Per task, form and number of nested layers: bits per byte or accuracies over the seeds."""
    summary = []
    for (task, form, nested), same in by_settings(of_seeds(stages), "task", "form", "nested").items():
        run, result = same[0]["settings"], same[0]["result"]
        row = {"task": task, "form": form, "nested": nested, "learning_rate": run["learning_rate"]}
        row |= {"steps": run["steps"], "parameters": result["parameters"]}
        if task == "language":
            row["bits_per_byte"] = over_seeds(same, "score")
        else:
            row["accuracy"] = {size: over_seeds(same, "accuracy", size) for size in result["accuracy"]}
        summary.append(row)
    return summary
