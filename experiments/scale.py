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

from . import figures, language
from .language import BATCH, HELD_OUT, HELD_OUT_BLOCKS, LENGTH, SIZES, TRAIN, VOCABULARY
from .models import parameters
from .runs import Advance, Experiment, by_settings, over_seeds
from .trainer import silent_trainer

BUDGET = 10.0  # CPU hours
TUNING = "tuning"
STEPS = 400  # of the standard model
SEEDS = [0, 1, 2]
STANDARD, FIRST, WINDOW, ALL = "standard", "first layer", "first layer, window 16", "all layers"
ROWS = [STANDARD, FIRST, WINDOW, ALL]
# In this order: corpus, size, times as many steps, rows, rates.
STAGES = [
    ("Shakespeare", "small", 1, ROWS, [2e-3, 4e-3]),
    ("SymPy", "small", 1, ROWS, [2e-3, 4e-3]),
    ("Shakespeare", "small", 3, ROWS[:3], [2e-3, 4e-3]),
    ("SymPy", "small", 3, ROWS[:3], [2e-3, 4e-3]),
    ("Shakespeare", "medium", 1, ROWS[:3], [1e-3, 2e-3]),
    ("Shakespeare", "small", 9, ROWS[:2], [2e-3, 4e-3]),
]


def config(size: str, row: str) -> NexusConfig:
    fields = SIZES[size]
    layers = fields["layers"]
    nesting = {
        STANDARD: {"attention_order": 1},
        FIRST: {"attention_order": [2] + [1] * (layers - 1)},
        WINDOW: {"attention_order": [2] + [1] * (layers - 1), "inner_window": 16},
        ALL: {"attention_order": 2},
    }[row]
    shape = language.architecture(fields) | {"num_layers": layers}
    return NexusConfig(**shape, **nesting, bos_token_id=None, eos_token_id=None)


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
    model, path = NexusForCausalLM(config(run["size"], run["row"])), prepare(run["corpus"])
    data = language.blocks(path, TRAIN)
    with silent_trainer(model, run, advance, language.training_arguments(run), train_dataset=data) as (trainer, curve):
        trainer.train()
    found = {part: losses(model.eval(), path, part) for part in (TUNING, HELD_OUT)}
    flops = run["steps"] * training_flops(run["size"], run["row"])
    return found | {"parameters": parameters(model), "training_flops": flops, "curve": curve}


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
    stages, seeds = STAGES, SEEDS
    if options.quick:
        stages, seeds = [("Shakespeare", "toy", 1, ROWS[:2], [2e-3])], SEEDS[:1]
    for corpus in dict.fromkeys(stage[0] for stage in stages):
        prepare(corpus)
    for corpus, size, longer, rows, rates in stages:
        make = partial(settings, corpus, size, longer)
        wanted = [make(row, rate, seed) for seed in seeds for row in rows for rate in rates]
        experiment.run(f"{corpus}, {size}, {longer} x", wanted)
    report = experiment.finish()
    figures.scale(report, experiment.path.with_suffix(".png"))
    return report


def summarise(stages: dict[str, list[dict]]) -> dict[str, dict]:
    """Per stage and row, at the rate that is best by the mean over the seeds of the loss on the files for that."""
    summary: dict[str, dict] = {}
    for stage, records in stages.items():
        for (row,), of_row in by_settings(records, "row").items():
            rates = by_settings(of_row, "learning_rate")
            tuning = {rate: over_seeds(same, TUNING, "bits_per_byte")["mean"] for (rate,), same in rates.items()}
            best = min(tuning, key=tuning.get)
            same = rates[best,]
            summary.setdefault(stage, {})[row] = {
                "learning_rate": best,
                "steps": same[0]["settings"]["steps"],
                "parameters": same[0]["result"]["parameters"],
                **{name: over_seeds(same, HELD_OUT, name) for name in same[0]["result"][HELD_OUT]},
            }
    return summary
