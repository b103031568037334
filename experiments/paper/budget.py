"""
Estimate what the paper's runs cost, in H100 hours: `python -m experiments.paper.budget` prints the README's tables.

Counted operations of training (common/costs.py; SFT with activation checkpointing) over what a GPU should do.
Nothing here was measured.
"""

from common import costs
from nexus_transformers import NexusConfig

from .presets import PRETRAINING, RETROFIT, Pretraining

PEAK = 989e12  # an H100's dense bf16 operations per second, by its vendor
UTILISATION = 0.40  # the part of it that is assumed to be reached
SFT_LENGTH = 8192  # tokens of a sequence in the estimate; the recipe cuts at 32,768


def gpu_hours(config: NexusConfig, tokens: float, length: int, checkpointed: bool) -> float:
    operations = costs.flops(config, 1, length, training=True, checkpointed=checkpointed)["total"] / length
    return tokens * operations / (PEAK * UTILISATION) / 3600


def pretraining_config(preset: Pretraining, order: int) -> NexusConfig:
    return NexusConfig(**preset.config(order))


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def lines() -> list[str]:
    """Both tables, in Markdown."""
    rows = []
    for name, preset in PRETRAINING.items():
        if name == "toy":
            continue
        tokens = preset.steps * preset.sequences * preset.length
        cells = []
        for total in (tokens, 143_000 * preset.sequences * preset.length):
            for order in (1, 2):
                hours = gpu_hours(pretraining_config(preset, order), total, preset.length, checkpointed=False)
                cells.append(f"{hours:,.0f}")
        rows.append([name, *cells])
    head = ["H100 hours", *(f"{size}, {kind}" for size in ("15B tokens", "300B") for kind in ("standard", "order 2"))]
    text = [*table(head, rows), ""]
    rows = []
    for name, preset in RETROFIT.items():
        if name == "toy":
            continue
        cells = []
        for order in (1, 2):
            config = NexusConfig(**preset.shape, attention_order=order)
            cells.append(f"{gpu_hours(config, 1e9, SFT_LENGTH, checkpointed=True):,.0f}")
        rows.append([name, *cells])
    return text + table(["H100 hours per billion tokens of SFT", "standard", "order 2"], rows)


if __name__ == "__main__":
    print("\n".join(lines()))
