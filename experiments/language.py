"""
Language modelling from scratch: which layers to nest, how deep, and what each part of the design is worth.
`python -m experiments language`.

Models of half a million to two million parameters learn Shakespeare's works; one in six works is held out. Each variant
is compared with the standard model twice: after as many steps (equal parameters and data), and after as many training
FLOPs (a nested model gets fewer steps). Learning rates are chosen with one seed out of the same four for the standard
model and for each kind of rival, and anew for longer training and larger models. `inside heads` is
the paper's Eq. 7 to 9, rotated at every level (models.py).
"""

import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from common.texts import CACHE, shakespeare
from nexus_transformers.tokenization import train_tokenizer

from . import loss_figures
from .models import WITH_W_O, build, label, parameters, training_flops
from .runs import Advance, Experiment, best_by, grouped, over_seeds
from .trainer import silent_trainer

BUDGET = 5.0  # CPU hours
TRAIN, HELD_OUT = "train", "held_out"
VOCABULARY, LENGTH, BATCH, HELD_OUT_BLOCKS = 1024, 256, 8, 96
SIZES = {
    "small": {"layers": 4, "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4},
    "medium": {"layers": 6, "hidden_size": 160, "intermediate_size": 432, "num_attention_heads": 5},
    "large": {"layers": 8, "hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 8},
    "toy": {"layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "held_out_blocks": 8},
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
    "order 2, first layer, no inner scale",
    "order 2, queries only",
    "order 2, keys only",
    "order 2, no inner scale",
    "order 2, gates from 0",
]
FINAL = ["standard", "order 2", "order 2, first layer"]
LONG = [*FINAL, "order 2, no inner scale"]
ORDERS = [2, 3]  # of the map


def prepare() -> Path:
    """Of Shakespeare's training works and the held-out ones, every sixth."""
    return tokenized("shakespeare", lambda: dict(zip((TRAIN, HELD_OUT), shakespeare(), strict=True)))


def tokenized(name: str, files: Callable[[], dict[str, list[Path]]]) -> Path:
    """
    A file with the token ids of the text files of each part, (tokens,) each, and the bytes of the text. The tokenizer
    is trained on the part for training only.
    """
    path = CACHE / "evidence" / f"{name}-{VOCABULARY}.safetensors"
    if path.exists():
        return path
    parts = files()
    tokenizer = train_tokenizer(parts[TRAIN], VOCABULARY)
    tensors = {}
    for part, chosen in parts.items():
        texts = [file.read_bytes().decode() for file in chosen]
        ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        tensors[part] = torch.tensor([token for each in ids for token in each], dtype=torch.int32)
        tensors[f"{part}_bytes"] = torch.tensor(sum(len(text.encode()) for text in texts))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    save_file(tensors, unfinished)
    unfinished.replace(path)
    return path


def blocks(path: Path, part: str, limit: int | None = None, length: int = LENGTH) -> list[dict]:
    """The text cut into blocks of `length` tokens; with a limit that many, spread over the whole text."""
    ids = load_file(path)[part].long()
    rows = ids[: len(ids) // length * length].view(-1, length)
    if limit is not None:
        rows = rows[torch.linspace(0, len(rows) - 1, min(limit, len(rows))).long()]
    return [{"input_ids": row, "labels": row} for row in rows]


def bytes_per_token(path: Path, part: str = HELD_OUT) -> float:
    tensors = load_file(path)
    return tensors[f"{part}_bytes"].item() / len(tensors[part])


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


def with_w_o(variant: str | list[int]) -> dict:
    """Fields that give a variant the form of version 0.1: of all but Eq. 7 to 9, which knows no W_O between levels."""
    return {} if variant == "inside heads" else WITH_W_O


def flops(size: str, variant: str | list[int], **shape) -> int:
    """Of one training step."""
    fields = {**SIZES[size], **shape}
    return training_flops(variant, fields["layers"], BATCH, LENGTH, **with_w_o(variant), **architecture(fields))


def training_arguments(run: dict, length: int = LENGTH) -> dict:
    """What Trainer is told, for blocks of this length."""
    return {
        "per_device_train_batch_size": BATCH * LENGTH // length,
        "per_device_eval_batch_size": BATCH * LENGTH // length,
        "learning_rate": run["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, run["steps"] // 20),
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "logging_steps": max(1, run["steps"] // 40),
    }


def learn(model: torch.nn.Module, run: dict, advance: Advance, length: int = LENGTH) -> dict:
    """The held-out loss, in nats per token and in bits per byte, and the curve of the training loss."""
    path = prepare()
    data = {
        "train_dataset": blocks(path, TRAIN, length=length),
        "eval_dataset": blocks(path, HELD_OUT, run.get("held_out_blocks", HELD_OUT_BLOCKS), length),
    }
    with silent_trainer(model, run, advance, training_arguments(run, length), **data) as (trainer, curve):
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
    return {"loss": loss, "bits_per_byte": loss / bytes_per_token(path) / math.log(2), "curve": curve}


def one_run(run: dict, advance: Advance) -> dict:
    fields = with_w_o(run["variant"]) | architecture(run)
    model = build(run["variant"], run["layers"], **fields)
    cost = training_flops(run["variant"], run["layers"], BATCH, LENGTH, **fields)
    return learn(model, run, advance) | {
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
    experiment = Experiment("language", BUDGET, options, one_run, summarise)
    small, medium = ("toy", "toy") if options.quick else ("small", "medium")
    rates, seeds = (LEARNING_RATES[:2], SEEDS[:1]) if options.quick else (LEARNING_RATES, SEEDS)
    prepare()
    stage = experiment.run

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
    tried = stage("map, equal compute", [settings(small, each, rate_of(each, best), compute=True) for each in nested])

    # longer; and larger, with learning rates scaled by width, as what is best falls with it
    again("longer", small, LONG, rates[1:], LONGER)
    scale = SIZES[small]["hidden_size"] / SIZES[medium]["hidden_size"]
    again("larger", medium, FINAL, [scale * rate for rate in rates[1:]])

    # the winners of the map and the rivals, at equal compute, three seeds
    ranked = sorted(tried, key=lambda record: record["result"]["loss"])
    finalists = ["standard", "order 2", "looped", "inside heads", "order 2, queries only", "order 2, no inner scale"]
    finalists += [record["settings"]["variant"] for record in ranked[:3]]
    wanted = [settings(small, each, rate_of(each, best), seed, True) for seed in seeds for each in finalists]
    shapes = [{"layers": SIZES[small]["layers"] + 1}, WIDER]  # what else the standard model could spend compute on
    rate = best[("standard",)]["learning_rate"]
    wanted += [settings(small, "standard", rate, seed, True, **shape) for seed in seeds for shape in shapes]
    stage("finalists", wanted)
    stage("map, equal steps", [settings(small, each, rate_of(each, best)) for each in nested])

    report = experiment.finish()
    loss_figures.language(report, experiment.path.with_suffix(".png"))
    return report


def summarise(stages: dict[str, list[dict]]) -> dict:
    """For each stage and model: held-out bits per byte over the seeds, parameters, and compute over the standard's."""
    return {
        stage: by_rate(records) if stage.endswith("learning rates") else by_model(records)
        for stage, records in stages.items()
        if records
    }


def by_rate(records: list[dict]) -> dict:
    """Held-out bits per byte of one seed, by variant and learning rate."""
    summary: dict = {}
    for record in records:
        rates = summary.setdefault(record["settings"]["variant"], {})
        rates[str(record["settings"]["learning_rate"])] = round(record["result"]["bits_per_byte"], 4)
    return summary


def by_model(records: list[dict]) -> dict:
    shape = records[0]["settings"]

    def name(record: dict) -> str:
        run = record["settings"]
        changed = {"deeper": run["layers"] != shape["layers"], "wider": run["hidden_size"] != shape["hidden_size"]}
        return ", ".join([label(run), *(word for word, holds in changed.items() if holds)])

    groups = grouped(records, name)
    summary = {}
    for model, same in groups.items():
        run, result = same[0]["settings"], same[0]["result"]
        summary[model] = {
            "bits_per_byte": over_seeds(same, "bits_per_byte"),
            "parameters": result["parameters"],
            **{key: run[key] for key in ("steps", "learning_rate")},
            "training_flops": result["training_flops"],
            "cpu_seconds": round(sum(record["cpu_seconds"] for record in same) / len(same), 1),
        }
        if "standard" in groups:
            base = groups["standard"][0]["result"]["training_flops"]
            summary[model]["relative_compute"] = round(result["training_flops"] / base, 3)
    return summary
