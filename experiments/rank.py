"""
The bottleneck that the paper names: what an attention logit can depend on. `python -m experiments rank`.

The logit between two tokens is a product of a query and a key. In one standard layer these are functions of the two
tokens (and their distance) alone, whatever stands around them; in a nested layer they are functions of the whole text
before. Measured are, for one layer before and after training on associative recall:

- *context rank*: two texts in three tokens of which every second one is the same, the others drawn anew 256 times: the
  numerical rank over contexts of the logits between the tokens that stay (256 x pairs, centred), and their standard
  deviation over contexts beside that over pairs
- *logit rank*: the numerical rank of the logits of one text of 128 tokens, (128, 128) per head, bounded by head_dim in
  standard and nested attention alike

and on the simplest task that asks for it (the token after a marker), accuracy against width.
"""

from argparse import Namespace
from functools import partial

import torch

from . import figures
from .models import build, parameters, training_flops
from .recall import architecture
from .runs import Advance, Experiment, best_by, by_settings, over_seeds
from .synthetic import SYMBOLS, accuracy, marker, recall, train

BUDGET = 1.5  # CPU hours
PAIRS, BATCH = 8, 32
VARIANTS = ["standard", "order 2", "order 2, with W_O", "order 3"]
WIDTHS = {
    "standard": [16, 32, 64, 128],
    "order 2": [16, 32, 64],
    "order 2, with W_O": [16],
    "separate": [16],
    "looped": [16, 64],
    "order 3": [16, 32],
}
LENGTHS = [16, 64]  # of the marker task
LEARNING_RATES = [2e-3, 8e-3]
SEEDS = [0, 1, 2]
CONTEXTS, TOLERANCE = 256, 1e-3  # singular values below this share of the largest count as 0


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Those of the outermost attention of the first layer, before mask and softmax: (B, T) -> (B, H, T, T)."""
    seen = []
    call = model.model.layers[0].self_attn.outer
    hook = call.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[:2]))
    model.eval()
    model(input_ids=ids, use_cache=False)
    hook.remove()
    query, key = seen[0]
    return query @ key.repeat_interleave(call.num_key_value_groups, 1).transpose(2, 3) * call.scaling


def numerical_rank(matrix: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Of each matrix of a batch: singular values above TOLERANCE x the largest, or x `scale`."""
    values = torch.linalg.svdvals(matrix.double())
    largest = values[..., :1] if scale is None else torch.full_like(values[..., :1], scale)
    return (values > TOLERANCE * largest).sum(-1)


def measure(model: torch.nn.Module, generator: torch.Generator) -> dict:
    """The two ranks, averaged over heads."""
    length = 32
    ids = torch.randint(2 * SYMBOLS, (1, length), generator=generator).repeat(CONTEXTS, 1)
    ids[:, 1::2] = torch.randint(2 * SYMBOLS, (CONTEXTS, length // 2), generator=generator)
    rows, columns = torch.tril_indices(length // 2, length // 2)
    values = logits(model, ids)[:, :, ::2, ::2][:, :, rows, columns].transpose(0, 1)  # (H, contexts, pairs)
    centred = values - values.mean(1, keepdim=True)
    # relative to the logits themselves, or rounding errors would have a rank of their own
    scale = torch.linalg.svdvals(values.double()).max().item()
    text = torch.randint(2 * SYMBOLS, (1, 128), generator=generator)
    return {
        "context_rank": numerical_rank(centred, scale).double().mean().item(),
        "context_share": (values.std(1).mean() / values.std(2).mean()).item(),
        "logit_rank": numerical_rank(logits(model, text)[0]).double().mean().item(),
    }


def one_run(run: dict, advance: Advance) -> dict:
    model = build(run["variant"], 1, **architecture(run["width"]))
    fresh = torch.Generator().manual_seed(10_000 + run["seed"])
    before = measure(model, torch.Generator().manual_seed(run["seed"])) if run["task"] == "recall" else None
    size, draw = run["size"], recall if run["task"] == "recall" else marker
    losses = train(model, partial(draw, size, run["batch"]), run["steps"], run["learning_rate"], run["seed"], advance)
    length = 4 * size if run["task"] == "recall" else size
    cost = training_flops(run["variant"], 1, run["batch"], length, **architecture(run["width"]))
    result = {
        "accuracy": accuracy(model, [draw(size, 128, fresh) for _ in range(8)]),
        "loss": losses,
        "parameters": parameters(model),
        "training_flops": run["steps"] * cost,
    }
    if before:
        after = measure(model, torch.Generator().manual_seed(run["seed"]))
        result |= {"initial": before, "trained": after}
    return result


def main(options: Namespace) -> dict:
    experiment = Experiment("rank", BUDGET, options, one_run)
    steps, seeds, lengths, widths = (1500, 1000), SEEDS, LENGTHS, WIDTHS
    if options.quick:
        steps, seeds, lengths = (10, 10), SEEDS[:2], LENGTHS[:1]
        widths = {variant: each[:2] for variant, each in WIDTHS.items()}
    common = {"task": "recall", "size": PAIRS, "batch": BATCH, "width": 64, "steps": steps[0], "learning_rate": 4e-3}
    wanted = [common | {"variant": variant, "seed": seed} for variant in VARIANTS for seed in seeds]
    ranks = experiment.run("ranks", wanted)

    task = {"task": "marker", "batch": 128, "steps": steps[1]}
    screen = [
        task | {"variant": variant, "width": width, "size": length, "learning_rate": rate, "seed": seeds[0]}
        for length in lengths
        for variant in widths
        for width in widths[variant]
        for rate in LEARNING_RATES
    ]
    records = experiment.run("marker, learning rates", screen)
    best = best_by(records, "accuracy", ("variant", "width", "size"), max).values()
    markers = experiment.run("marker, seeds", [run | {"seed": seed} for run in best for seed in seeds])
    report = experiment.finish({"ranks": summarise_ranks(ranks), "marker": summarise_marker(markers)})
    figures.rank(report, experiment.path.with_suffix(".png"))
    return report


def summarise_ranks(records: list[dict]) -> dict:
    return {
        variant: {
            state: {figure: over_seeds(same, state, figure) for figure in same[0]["result"][state]}
            for state in ("initial", "trained")
        }
        | {"accuracy": over_seeds(same, "accuracy")}
        for (variant,), same in by_settings(records, "variant").items()
    }


def summarise_marker(records: list[dict]) -> list[dict]:
    return [
        {
            "length": size,
            "variant": variant,
            "width": width,
            "accuracy": over_seeds(same, "accuracy"),
            "parameters": same[0]["result"]["parameters"],
            "training_flops": same[0]["result"]["training_flops"],
        }
        for (size, variant, width), same in by_settings(records, "size", "variant", "width").items()
    ]
