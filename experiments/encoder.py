"""
What nested attention buys in an encoder, which sees both sides: `python -m experiments encoder`.

Two tasks. In `facts` a value is masked that two other tokens give only together, among facts in random order
(synthetic.py): two hops to either side. In `text` 30 % of the tokens of Shakespeare's works are masked. All rows of
a task have the same training FLOPs. A learning rate is chosen for each row with one seed, out of the same few; then
there are three seeds.
"""

import math
import random
from argparse import Namespace

import torch

from common import costs
from nexus_transformers import NexusConfig, NexusForMaskedLM

from . import figures, language
from .models import parameters
from .runs import Advance, Experiment, best_by, by_settings, of_seeds, over_seeds
from .synthetic import IGNORED, MASK, Batch, accuracy, masked_facts, train
from .trainer import silent_trainer

BUDGET = 1.5  # CPU hours
SEEDS = [0, 1, 2]
RATES = {"facts": [4e-3, 8e-3], "text": [1e-3, 2e-3, 4e-3]}
FEWEST, FACTS, ASKED, FACTS_BATCH = 2, 12, 4, 32  # facts of a training batch, fewest and most; the test has the most
MASKED = 0.3  # share of the tokens of a text, as in ModernBERT's training
STANDARD, WINDOW = {"attention_order": 1}, {"inner_window": 4}  # tokens on each side
FIRST_SEES_4 = {"sliding_window": 4, "sliding_layers": [0]}  # the whole first layer: the fair rival of an inner window
# Of each row: layers, and the other fields of its config.
ROWS = {
    "facts": {
        "1 layer, standard": (1, STANDARD),
        "1 layer, order 2": (1, {}),
        "1 layer, order 2, window 4": (1, WINDOW),
        "2 layers, standard": (2, STANDARD),
        "2 layers, standard, first sees 4": (2, STANDARD | FIRST_SEES_4),
    },
    "text": {
        "standard": (4, STANDARD),
        "standard, first layer sees 4": (4, STANDARD | FIRST_SEES_4),
        "first layer of order 2": (4, {}),
        "first layer of order 2, window 4": (4, WINDOW),
        "first layer of order 2, sees 4": (4, FIRST_SEES_4),
    },
}
STEPS = {"facts": 2500, "text": 600}  # of the first row
SIZE = language.SIZES["small"]
ARCHITECTURE = {
    "facts": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "vocab_size": MASK + 1,
        "max_position_embeddings": 3 * (FACTS + ASKED),
    },
    "text": language.architecture(SIZE) | {"vocab_size": language.VOCABULARY + 1},  # the last is the mask
}


def config(task: str, row: str) -> NexusConfig:
    """By default the first layer is of order 2."""
    layers, fields = ROWS[task][row]
    shape = ARCHITECTURE[task] | {"num_layers": layers, "is_causal": False}
    return NexusConfig(**shape, **fields, bos_token_id=None, eos_token_id=None)


def training_flops(task: str, row: str) -> int:
    """Of one step."""
    mean_length = 3 * ((FEWEST + FACTS) // 2 + ASKED)
    batch, length = (language.BATCH, language.LENGTH) if task == "text" else (FACTS_BATCH, mean_length)
    return costs.flops(config(task, row), batch, length, training=True)["total"]


def settings(task: str, row: str, rate: float, seed: int, quick: bool) -> dict:
    """A run with the training FLOPs of the task's first row."""
    first = next(iter(ROWS[task]))
    steps = round((4 if quick else STEPS[task]) * training_flops(task, first) / training_flops(task, row))
    return {"task": task, "row": row, "steps": max(1, steps), "learning_rate": rate, "seed": seed}


def one_run(run: dict, advance: Advance) -> dict:
    task = run["task"]
    model = NexusForMaskedLM(config(task, run["row"]))
    known = {"parameters": parameters(model), "training_flops": run["steps"] * training_flops(task, run["row"])}
    if task == "text":
        return known | {"bits_per_token": learn(model, run, advance)}
    choice = random.Random(run["seed"])

    def draw(generator: torch.Generator) -> Batch:
        facts = choice.randint(FEWEST, FACTS)
        return masked_facts(facts, min(facts, ASKED), FACTS_BATCH, generator)

    losses = train(model, draw, run["steps"], run["learning_rate"], run["seed"], advance)
    fresh = torch.Generator().manual_seed(10_000 + run["seed"])
    right = accuracy(model, [masked_facts(FACTS, ASKED, 256, fresh) for _ in range(4)])
    return known | {"accuracy": right, "loss": losses}


def mask(rows: list[dict], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Blocks of text as a batch, in which `MASKED` of the tokens are masked, and asked."""
    ids = torch.stack([row["input_ids"] for row in rows])
    hidden = torch.rand(ids.shape, generator=generator) < MASKED
    return {"input_ids": ids.masked_fill(hidden, language.VOCABULARY), "labels": ids.masked_fill(~hidden, IGNORED)}


def learn(model: torch.nn.Module, run: dict, advance: Advance) -> float:
    """The held-out loss in bits per masked token. Every model is asked the same."""
    path, drawn = language.prepare(), torch.Generator().manual_seed(run["seed"])
    data = {"train_dataset": language.blocks(path, language.TRAIN), "data_collator": lambda rows: mask(rows, drawn)}
    with silent_trainer(model, run, advance, language.training_arguments(run), **data) as (trainer, _):
        trainer.train()
    return held_out_bits(model.eval(), language.blocks(path, language.HELD_OUT, language.HELD_OUT_BLOCKS))


@torch.no_grad()
def held_out_bits(model: torch.nn.Module, rows: list[dict]) -> float:
    """The mean over the masked tokens of these blocks, with masks that are always the same."""
    fresh, total, asked = torch.Generator().manual_seed(10_000), 0.0, 0
    for start in range(0, len(rows), language.BATCH):
        batch = mask(rows[start : start + language.BATCH], fresh)
        count = (batch["labels"] != IGNORED).sum().item()
        total += model(**batch).loss.item() * count
        asked += count
    return total / asked / math.log(2)


def main(options: Namespace) -> dict:
    experiment = Experiment("encoder", BUDGET, options, one_run, summarise)
    language.prepare()
    figure, choose = {"facts": "accuracy", "text": "bits_per_token"}, {"facts": max, "text": min}
    for task, rows in ROWS.items():
        for row in list(rows)[:2] if options.quick else rows:  # a row is whole as soon as it is there
            rates = RATES[task][: 1 if options.quick else None]
            screen = [settings(task, row, rate, SEEDS[0], options.quick) for rate in rates]
            tried = experiment.run(f"{task}, {row}: learning rates", screen)
            (best,) = best_by(tried, figure[task], ("row",), choose[task]).values()
            seeds = [best | {"seed": seed} for seed in SEEDS[: 1 if options.quick else None]]
            experiment.run(f"{task}, {row}: seeds", seeds)
    report = experiment.finish()
    figures.encoder(report, experiment.path.with_suffix(".png"))
    return report


def summarise(stages: dict[str, list[dict]]) -> dict[str, dict]:
    """Per task and row: accuracy, or bits per masked token, over the seeds."""
    summary: dict[str, dict] = {}
    for (task, row), same in by_settings(of_seeds(stages), "task", "row").items():
        run, result = same[0]["settings"], same[0]["result"]
        figure = "bits_per_token" if task == "text" else "accuracy"
        found = {"learning_rate": run["learning_rate"], "steps": run["steps"], "parameters": result["parameters"]}
        summary.setdefault(task, {})[row] = found | {figure: over_seeds(same, figure)}
    return summary
