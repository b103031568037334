"""
Which form of inner attention is the default: a short comparison, `python -m experiments.forms`.

The paper leaves open what is between the levels (W_O, a scale) and how rotary embedding meets Eq. 7 to 9. Each form
learns Shakespeare's works (first layer nested, or all) with the training FLOPs of a short standard run, and associative
recall with one layer. Learning rates are chosen with one seed out of the same for each; then there are three
seeds. Runs are short: what holds here may not hold in long ones.
"""

import math
import random
from argparse import Namespace

import torch
from torch import nn

from common import costs
from nexus_transformers import NexusConfig, NexusForCausalLM

from . import language, recall, synthetic
from .models import RotatedAtEachLevel, parameters
from .runs import Advance, Experiment, best_by, mean_and_spread, parse
from .trainer import silent_trainer

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
    shape = dict(SHAPES[task])
    layers = shape.pop("layers")
    orders = [2] * nested + [1] * (layers - nested)
    tokens = {"bos_token_id": None, "eos_token_id": None}
    return NexusConfig(num_layers=layers, attention_order=orders, **FORMS[form], **shape, **tokens)


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
    torch.manual_seed(run["seed"])
    model = build(run["task"], run["form"], run["nested"])
    result = (one_language_run if run["task"] == "language" else one_recall_run)(model, run, advance)
    flops = run["steps"] * training_flops(run["task"], run["form"], run["nested"])
    return result | {"parameters": parameters(model), "training_flops": flops}


def one_language_run(model: nn.Module, run: dict, advance: Advance) -> dict:
    path = language.prepare()
    arguments = {
        "per_device_train_batch_size": language.BATCH,
        "per_device_eval_batch_size": language.BATCH,
        "learning_rate": run["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, run["steps"] // 20),
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
    }
    data = {
        "train_dataset": language.blocks(path, language.TRAIN),
        "eval_dataset": language.blocks(path, language.HELD_OUT, language.HELD_OUT_BLOCKS),
    }
    with silent_trainer(model, run, advance, arguments, **data) as (trainer, _):
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
    return {"score": loss / language.bytes_per_token(path) / math.log(2)}  # bits per byte


def one_recall_run(model: nn.Module, run: dict, advance: Advance) -> dict:
    choice = random.Random(run["seed"])

    def draw(generator: torch.Generator) -> synthetic.Batch:
        return synthetic.recall(choice.randint(2, TESTED[-1]), recall.BATCH, generator)

    synthetic.train(model, draw, run["steps"], run["learning_rate"], run["seed"], advance)
    fresh = torch.Generator().manual_seed(10_000 + run["seed"])
    right = {
        str(size): synthetic.accuracy(model, [synthetic.recall(size, 64, fresh) for _ in range(4)]) for size in TESTED
    }
    return {"accuracy": right, "score": -sum(right.values())}


def main(options: Namespace) -> dict:
    experiment = Experiment("forms", BUDGET, options)
    layers = {task: shape["layers"] for task, shape in SHAPES.items()}
    rows = [("language", form, int(form != "standard")) for form in FORMS]
    rows += [("language", form, layers["language"]) for form in EVERYWHERE]
    rows += [("recall", form, layers["recall"] * (form != "standard")) for form in FORMS]
    seeds = SEEDS
    if options.quick:
        few = ("standard", "Eq. 12", "self, rotated at each level")
        rows, seeds = [row for row in rows if row[1] in few], SEEDS[:1]
    records = []
    for task, form, nested in rows:  # one after another, so that each row is whole as soon as it is there
        screen = [
            settings(task, form, nested, rate, options.quick) for rate in RATES[task][: 1 if options.quick else None]
        ]
        tried = experiment.run(f"{task}, {form}, {nested} nested: learning rates", screen, one_run)
        (best,) = best_by(tried, "score", ("form",)).values()
        runs = [best | {"seed": seed} for seed in seeds]
        records += experiment.run(f"{task}, {form}, {nested} nested: seeds", runs, one_run)
        experiment.summary = summarise(records)
        experiment.save()
    return experiment.finish(summarise(records))


def summarise(records: list[dict]) -> list[dict]:
    """Per task, form and number of nested layers: bits per byte or accuracies over the seeds."""
    rows: dict = {}
    for record in records:
        run = record["settings"]
        rows.setdefault((run["task"], run["form"], run["nested"]), []).append(record)
    summary = []
    for (task, form, nested), same in rows.items():
        row = {"task": task, "form": form, "nested": nested, "learning_rate": same[0]["settings"]["learning_rate"]}
        results = [record["result"] for record in same]
        row |= {"steps": same[0]["settings"]["steps"], "parameters": results[0]["parameters"]}
        if task == "language":
            row["bits_per_byte"] = mean_and_spread([result["score"] for result in results])
        else:
            sizes = results[0]["accuracy"]
            row["accuracy"] = {
                size: mean_and_spread([result["accuracy"][size] for result in results]) for size in sizes
            }
        summary.append(row)
    return summary


if __name__ == "__main__":
    main(parse(__doc__))
