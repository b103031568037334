"""
Estimate what the paper's runs cost, in H100 hours: `python -m experiments.paper.budget` prints the README's tables.

Counted operations of training (common/costs.py; SFT with activation checkpointing) over what a GPU should do.
Nothing here was measured.
"""

from common import costs
from nexus_transformers import NexusConfig

from .presets import ARMS, PRETRAINING, RETROFIT

PEAK = 989e12  # an H100's dense bf16 operations per second, by its vendor
UTILISATION = 0.40  # the part of it that is assumed to be reached
RETROFITTED = ("standard", "nexus-qk", "ours")  # arms: the baseline, the paper's and ours
SFT_LENGTH = 8192  # tokens of a sequence in the estimate; the recipe cuts at 32,768


def gpu_hours(config: NexusConfig, tokens: float, length: int, checkpointed: bool) -> float:
    operations = costs.flops(config, 1, length, training=True, checkpointed=checkpointed)["total"] / length
    return tokens * operations / (PEAK * UTILISATION) / 3600


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def lines() -> list[str]:
    """Both tables, in Markdown."""
    scratch = [arm for arm in ARMS if arm != "ours"]
    rows = []
    for name, preset in PRETRAINING.items():
        if name != "toy":
            tokens = preset.steps * preset.sequences * preset.length
            configs = [NexusConfig(**preset.config(arm)) for arm in scratch]
            hours = [gpu_hours(config, tokens, preset.length, checkpointed=False) for config in configs]
            rows.append([name, *(f"{each:,.0f}" for each in hours)])
    text = [*table(["H100 hours for 15B tokens", *scratch], rows), ""]
    rows = []
    for name, preset in RETROFIT.items():
        if name != "toy":
            configs = [NexusConfig(**preset.shape, **ARMS[arm]) for arm in RETROFITTED]
            hours = [gpu_hours(config, 1e9, SFT_LENGTH, checkpointed=True) for config in configs]
            rows.append([name, *(f"{each:,.0f}" for each in hours)])
    return text + table(["H100 hours per billion tokens of SFT", *RETROFITTED], rows)


if __name__ == "__main__":
    print("\n".join(lines()))
