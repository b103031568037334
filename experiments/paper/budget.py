"""
Estimate what the paper's runs cost, in H100 hours: `python -m experiments.paper.budget` prints the README's tables.

Counted operations of training (common/costs.py; SFT with activation checkpointing) over what a GPU should do.
Nothing here was measured.
"""

from common import costs
from common.report import table
from nexus_transformers import NexusConfig

from .presets import ARMS, PRETRAINING, RETROFIT

PEAK = 989e12  # an H100's dense bf16 operations per second, by its vendor
UTILISATION = 0.40  # the part of it that is assumed to be reached
RETROFITTED = ("standard", "nexus-qk", "ours")  # arms: the baseline, the paper's and ours
SFT_LENGTH = 8192  # tokens of a sequence in the estimate; the recipe cuts at 32,768


def gpu_hours(fields: dict, tokens: float, length: int, checkpointed: bool = False) -> str:
    """Of a NexusConfig with these fields."""
    flops = costs.flops(NexusConfig(**fields), 1, length, training=True, checkpointed=checkpointed)["total"]
    return f"{tokens * flops / length / (PEAK * UTILISATION) / 3600:,.0f}"


def tables() -> str:
    """Both, in Markdown."""
    arms = [arm for arm in ARMS if arm != "ours"]
    pretraining = [
        [name, *(gpu_hours(each.config(arm), each.steps * each.sequences * each.length, each.length) for arm in arms)]
        for name, each in PRETRAINING.items()
        if name != "toy"
    ]
    sft = [
        [name, *(gpu_hours(each.shape | ARMS[arm], 1e9, SFT_LENGTH, checkpointed=True) for arm in RETROFITTED)]
        for name, each in RETROFIT.items()
        if name != "toy"
    ]
    first = table(f"| H100 hours for 15B tokens | {' | '.join(arms)} |", pretraining, " --- ")
    second = table(f"| H100 hours per billion tokens of SFT | {' | '.join(RETROFITTED)} |", sft, " --- ")
    return f"{first}\n\n{second}"


if __name__ == "__main__":
    print(tables())
