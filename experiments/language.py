"""
Language modelling from scratch: which layers to nest, how deep, and what each part of the design is worth.
`python -m experiments.language`.

Models of half a million to two million parameters learn Shakespeare's works; one in six works is held out. Each variant
is compared with the standard model twice: after as many steps (equal parameters and data), and after as many training
FLOPs (a nested model gets fewer steps). Learning rates are chosen with one seed out of the same four for the standard
model and for each kind of rival, and anew for longer training and larger models. `inside heads` is
another reading of the paper (models.py).
"""

import math
import tempfile
from argparse import Namespace

from transformers import PrinterCallback, Trainer, TrainingArguments

from . import text
from .following import Follow
from .language_report import plot, summarise
from .models import build, parameters, training_flops
from .runs import Advance, Experiment, best_by, parse

BUDGET = 5.0  # CPU hours
VOCABULARY, LENGTH, BATCH, HELD_OUT_BLOCKS = 1024, 256, 8, 96
SIZES = {
    "small": {"layers": 4, "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4},
    "medium": {"layers": 6, "hidden_size": 160, "intermediate_size": 432, "num_attention_heads": 5},
    "toy": {"layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2},
}
WIDER = {"hidden_size": 112, "intermediate_size": 300}
STEPS = {"small": 400, "medium": 400, "toy": 4}  # of the standard model
LONGER = 3  # times as many steps, to see whether what holds early holds later
LEARNING_RATES = [1e-3, 2e-3, 4e-3, 8e-3]
SEEDS = [0, 1, 2]
# The variants with a search of their own, and whose learning rate the others take.
TUNED = ["standard", "order 2", "order 2, first layer", "looped", "inside heads"]
ABLATION = [
    "order 3",
    "order 3, first layer",
    "order 2, first layer, queries only",
    "order 2, first layer, keys only",
    "order 2, first layer, no source scale",
    "order 2, queries only",
    "order 2, keys only",
    "order 2, no source scale",
    "order 2, gates from 0",
    "order 2, unshared",
]
FINAL = ["standard", "order 2", "order 2, first layer"]
LONG = [*FINAL, "order 2, no source scale"]
ORDERS = [2, 3]  # of the map


def settings(
    size: str, variant: str | list[int], rate: float, seed: int = 0, compute: bool = False, longer: int = 1, **shape
) -> dict:
    """One run. `compute`: with the training FLOPs of the standard model, in place of its steps."""
    steps = longer * STEPS[size]
    fields = {**SIZES[size], **shape}
    if compute:
        ratio = flops(size, "standard") / flops(size, variant, **shape)
        steps = round(steps * ratio)
    return {"variant": variant, **fields, "steps": steps, "learning_rate": rate, "seed": seed}


def architecture(run: dict) -> dict:
    fields = {key: run[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")}
    return fields | {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH}


def flops(size: str, variant: str | list[int], **shape) -> int:
    """Of one training step."""
    fields = {**SIZES[size], **shape}
    return training_flops(variant, fields["layers"], BATCH, LENGTH, **architecture(fields))


def one_run(run: dict, advance: Advance) -> dict:
    path = text.prepare(VOCABULARY)
    model = build(run["variant"], run["layers"], **architecture(run))
    follow = Follow(advance)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=run["steps"],
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            learning_rate=run["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=max(1, run["steps"] // 20),
            weight_decay=0.1,
            adam_beta2=0.95,
            logging_steps=max(1, run["steps"] // 40),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=run["seed"],
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=text.blocks(path, text.TRAIN, LENGTH),
            eval_dataset=text.blocks(path, text.HELD_OUT, LENGTH, HELD_OUT_BLOCKS),
            callbacks=[follow],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
    cost = training_flops(run["variant"], run["layers"], BATCH, LENGTH, **architecture(run))
    return {
        "loss": loss,  # nats per token
        "bits_per_byte": loss / text.bytes_per_token(path) / math.log(2),
        "curve": follow.curve,
        "parameters": parameters(model),
        "training_flops": cost * run["steps"],
        "gates": {name: round(gate.item(), 4) for name, gate in model.gates().items()},
    }


def rate_of(variant: str | list[int], best: dict) -> float:
    """The learning rate of a variant: its own, or that of the most alike of those that were tuned."""
    if isinstance(variant, list):
        orders = [order for order in variant if order > 1]
        alike = "order 2, first layer" if len(orders) == 1 else "order 2"
    else:
        alike = variant if variant in TUNED else "order 2, first layer" if "first layer" in variant else "order 2"
    return best[(alike,)]["learning_rate"]


def nestings(layers: int) -> list[list[int]]:
    """Orders per layer of the map: each layer alone, the first few, all; for each order."""
    alone = [[1] * layer + [2] for layer in range(layers)]
    first = [[2] * count for count in range(2, layers + 1)]
    return [[order if each == 2 else 1 for each in nesting] for order in ORDERS for nesting in alone + first]


def main(options: Namespace) -> dict:
    experiment = Experiment("language", BUDGET, options)
    small, medium = ("toy", "toy") if options.quick else ("small", "medium")
    rates, seeds = (LEARNING_RATES[:2], SEEDS[:2]) if options.quick else (LEARNING_RATES, SEEDS)
    text.prepare(VOCABULARY)
    stages: dict[str, list[dict]] = {}

    def stage(name: str, wanted: list[dict]) -> list[dict]:
        """Stopped after any of them, the file has a summary of what is done by then."""
        stages[name] = experiment.run(name, wanted, one_run)
        experiment.summary = summarise(stages)
        experiment.save()
        return stages[name]

    def again(name: str, size: str, variants: list[str], rates: list[float], longer: int = 1) -> None:
        """At equal compute, with a search of its own for learning rates: those of other lengths and sizes mislead."""
        screen = [settings(size, each, rate, compute=True, longer=longer) for each in variants for rate in rates]
        chosen = best_by(stage(f"{name}, learning rates", screen), "loss", ("variant",)).values()
        stage(name, [run | {"seed": seed} for seed in seeds for run in chosen])

    screen = [settings(small, variant, rate) for variant in TUNED for rate in rates]
    best = best_by(stage("learning rates", screen), "loss", ("variant",))

    # what each part of the design is worth, at equal parameters
    variants = TUNED + ABLATION
    stage("ablation", [settings(small, each, rate_of(each, best), seed) for seed in seeds for each in variants])

    # which layers to nest, with one seed: a map
    nested = nestings(SIZES[small]["layers"])
    maps = {
        name: [settings(small, variant, rate_of(variant, best), compute=compute) for variant in nested]
        for name, compute in (("map, equal compute", True), ("map, equal steps", False))
    }
    stage("map, equal compute", maps["map, equal compute"])

    # longer; and larger, with learning rates scaled by width, as what is best falls with it
    again("longer", small, LONG, rates[1:], LONGER)
    scale = SIZES[small]["hidden_size"] / SIZES[medium]["hidden_size"]
    again("larger", medium, FINAL, [scale * rate for rate in rates[1:]])

    # the winners of the map and the rivals, at equal compute, three seeds
    ranked = sorted(stages["map, equal compute"], key=lambda record: record["result"]["loss"])
    finalists = ["standard", "order 2", "looped", "inside heads", "order 2, queries only", "order 2, no source scale"]
    finalists += [record["settings"]["variant"] for record in ranked[:3]]
    wanted = [settings(small, each, rate_of(each, best), seed, True) for seed in seeds for each in finalists]
    shapes = [{"layers": SIZES[small]["layers"] + 1}, WIDER]  # what else the standard model could spend compute on
    rate = best[("standard",)]["learning_rate"]
    wanted += [settings(small, "standard", rate, seed, True, **shape) for seed in seeds for shape in shapes]
    stage("finalists", wanted)
    stage("map, equal steps", maps["map, equal steps"])

    report = experiment.finish(summarise(stages))
    plot(report, experiment.path.with_suffix(".png"))
    return report


if __name__ == "__main__":
    main(parse(__doc__))
