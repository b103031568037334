"""
Does the gain of a nested layer last in longer training and larger models, and what does it consist of?
`python -m experiments scale`.

Eq. 12 without W_O, the default, learns Shakespeare's works and the source code of SymPy, at equal training FLOPs.
Learning rates are chosen with three seeds, out of the same two, by the loss on files of their own, which are neither
trained on nor reported. The reported loss is split, too: into tokens whose pair with the token before stands earlier in
the same block, which looking back can tell, and all others.
"""

import math
from argparse import Namespace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from common import costs
from common.texts import shakespeare, sympy
from nexus_transformers import NexusConfig, NexusForCausalLM

from . import language, loss_figures
from .language import BATCH, HELD_OUT, HELD_OUT_BLOCKS, LENGTH, SIZES, TRAIN, VOCABULARY
from .models import parameters
from .runs import Advance, Experiment, by_settings, mean_and_spread, over_seeds
from .trainer import silent_trainer

BUDGET = 11.0  # CPU hours
TUNING = "tuning"
PARTS = (TUNING, HELD_OUT)  # that are measured
MEASURES = ("bits_per_byte", "bits_repeated", "bits_new")
STEPS = 400  # of the standard model
SEEDS = [0, 1, 2]
STANDARD, FIRST, WINDOW, NEAR = "standard", "first layer", "first layer, window 16", "standard, first layer sees 16"
BOTH = "first layer, sees 16"
SEES_16 = {"sliding_window": 16, "sliding_layers": [0]}  # the whole first layer: the rival of a window of inner levels
NO_SCALE = {"inner_scale": False}  # the paper mentions none
# Layers that are nested, and further fields: Eq. 12 without W_O and with the scale, unless these say otherwise.
NESTED = {
    STANDARD: (0, {}),
    FIRST: (1, {}),
    WINDOW: (1, {"inner_window": 16}),
    "first layer, window 4": (1, {"inner_window": 4}),
    NEAR: (0, SEES_16),
    BOTH: (1, SEES_16),
    "first two layers": (2, {}),
    "all layers": (None, {}),
    "first layer, no scale": (1, NO_SCALE),
    "first layer, window 16, no scale": (1, {"inner_window": 16, **NO_SCALE}),
    "first layer, window 16, separate": (1, {"inner_window": 16, "inner_attention": "separate"}),
}
FEW = [STANDARD, WINDOW, FIRST, NEAR, BOTH]
# In this order: corpus, size, times as many steps, rows, and rates: None for those that were best before.
STAGES = [
    ("Shakespeare", "small", 1, list(NESTED), [2e-3, 4e-3]),
    ("Shakespeare", "small", 3, FEW, [2e-3, 4e-3]),
    ("SymPy", "small", 1, FEW, [1e-3, 2e-3, 4e-3]),
    ("Shakespeare", "medium", 1, [STANDARD, WINDOW, NEAR], [1e-3, 2e-3]),
    ("SymPy", "small", 3, FEW, None),
    ("Shakespeare", "small", 9, [STANDARD, WINDOW, NEAR], None),
    ("Shakespeare", "large", 1, [STANDARD, WINDOW, NEAR], [5e-4, 1e-3]),
]


def shape(size: str) -> dict:
    fields = SIZES[size]
    return language.architecture(fields) | {"num_layers": fields["layers"], "bos_token_id": None, "eos_token_id": None}


def config(size: str, row: str) -> NexusConfig:
    layers, (nested, fields) = SIZES[size]["layers"], NESTED[row]
    nested = layers if nested is None else nested
    return NexusConfig(**shape(size), attention_order=[2] * nested + [1] * (layers - nested), **fields)


def training_flops(size: str, row: str) -> int:
    """Of one step."""
    return costs.flops(config(size, row), BATCH, LENGTH, training=True)["total"]


def prepare(corpus: str) -> Path:
    """Training files, and those for the choice of rates and for the report, every sixth each."""
    return language.tokenized(f"{corpus.lower()}-in-three", lambda: in_three(corpus))


def in_three(corpus: str) -> dict[str, list[Path]]:
    files = sympy() if corpus == "SymPy" else sorted(chain(*shakespeare()))
    return {
        TRAIN: [file for place, file in enumerate(files) if place % 6 not in (0, 3)],
        TUNING: files[3::6],
        HELD_OUT: files[::6],
    }


def settings(corpus: str, size: str, longer: int, row: str, rate: float, seed: int) -> dict:
    """A run with the training FLOPs of the standard model."""
    steps = (4 if size == "toy" else STEPS) * longer
    steps = round(steps * training_flops(size, STANDARD) / training_flops(size, row))
    common = {"corpus": corpus, "size": size, "longer": longer, "row": row}
    return common | {"steps": steps, "learning_rate": rate, "seed": seed}


def one_run(run: dict, advance: Advance) -> dict:
    model = NexusForCausalLM(config(run["size"], run["row"]))
    found = learn(model, run, prepare(run["corpus"]), advance)
    return found | {"training_flops": run["steps"] * training_flops(run["size"], run["row"])}


def learn(model: torch.nn.Module, run: dict, path: Path, advance: Advance) -> dict:
    """The losses on the files for rates and for the report, the parameters, and the curve of the training loss."""
    data = language.blocks(path, TRAIN)
    with silent_trainer(model, run, advance, language.training_arguments(run), train_dataset=data) as (trainer, curve):
        trainer.train()
    found = {part: losses(model.eval(), path, part) for part in PARTS}
    return found | {"parameters": parameters(model), "curve": curve}


@torch.no_grad()
def losses(model: torch.nn.Module, path: Path, part: str) -> dict[str, float]:
    """Of a part of the text: bits per byte, and bits per token of the tokens that repeat a pair, and of the others."""
    rows = [row["input_ids"] for row in language.blocks(path, part, HELD_OUT_BLOCKS)]
    each, again = [], []
    for batch in torch.stack(rows).split(BATCH):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        each.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none"))
        again.append(repeats_a_pair(batch))
    bits, known = torch.cat(each) / math.log(2), torch.cat(again)
    return {
        "bits_per_byte": bits.mean().item() / language.bytes_per_token(path, part),
        "bits_repeated": bits[known].mean().item(),
        "bits_new": bits[~known].mean().item(),
        "share_repeated": known.float().mean().item(),
    }


def repeats_a_pair(ids: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, T - 1): whether a token, from the second on, has followed the token before it earlier, too."""
    pairs = ids[:, :-1] * VOCABULARY + ids[:, 1:]
    return (pairs.unsqueeze(2) == pairs.unsqueeze(1)).tril(-1).any(2)


def main(options: Namespace) -> dict:
    experiment = Experiment("scale", BUDGET, options, one_run, summarise)
    stages, seeds, best = STAGES, SEEDS, {}
    if options.quick:
        stages, seeds = (
            [("Shakespeare", "toy", 1, FEW[:2], [2e-3]), ("Shakespeare", "toy", 3, FEW[:2], None)],
            SEEDS[:1],
        )
    for corpus in dict.fromkeys(stage[0] for stage in stages):
        prepare(corpus)
    for corpus, size, longer, rows, rates in stages:
        make = partial(settings, corpus, size, longer)
        tried = {row: rates or [best[corpus, size, row]] for row in rows}
        wanted = [make(row, rate, seed) for row in rows for rate in tried[row] for seed in seeds]
        records = experiment.run(f"{corpus}, {size}, {longer} x", wanted)
        best |= {(corpus, size, row): best_rate(same) for (row,), same in by_settings(records, "row").items()}
    report = experiment.finish()
    loss_figures.scale(report, experiment.path.with_suffix(".png"))
    loss_figures.gains(report, experiment.path.with_name("scale_gains.png"))
    return report


def best_rate(records: list[dict]) -> float:
    """By the mean over the seeds of the loss on the files for that."""
    rates = by_settings(records, "learning_rate").items()
    tuning = {rate: over_seeds(same, TUNING, "bits_per_byte")["mean"] for (rate,), same in rates}
    return min(tuning, key=tuning.get)


def summarise(stages: dict[str, list[dict]]) -> dict[str, dict]:
    """
    Per stage and row, at the best rate, the losses over the seeds, and the gain over the standard model seed by seed:
    runs with one seed see the same data in the same order.
    """
    summary: dict[str, dict] = {}
    for stage, records in stages.items():
        chosen = {}
        for (row,), same in by_settings(records, "row").items():
            chosen[row] = by_settings(same, "learning_rate")[best_rate(same),]
        for row, same in chosen.items():
            run, result = same[0]["settings"], same[0]["result"]
            summary.setdefault(stage, {})[row] = {
                "learning_rate": run["learning_rate"],
                "steps": run["steps"],
                "parameters": result["parameters"],
                **{name: over_seeds(same, HELD_OUT, name) for name in result[HELD_OUT]},
            }
            if row != STANDARD and STANDARD in chosen:
                gains = {name: gain(chosen[STANDARD], same, name) for name in MEASURES}
                summary[stage][row]["gain"] = gains
    return summary


def gain(standard: list[dict], nested: list[dict], name: str) -> dict:
    """By how many bits the nested model is better, over the seeds that both have."""
    bits = [{each["settings"]["seed"]: each["result"][HELD_OUT][name] for each in runs} for runs in (standard, nested)]
    return mean_and_spread([bits[0][seed] - bits[1][seed] for seed in sorted(bits[0].keys() & bits[1].keys())])
