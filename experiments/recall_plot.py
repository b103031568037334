"""The figures of recall.py: accuracy against size and compute, and the attention maps of a solved example."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def plot(report: dict, path: Path) -> None:
    rows = list(report["summary"]["recall"])
    colours = dict(zip(rows, plt.get_cmap("tab20").colors, strict=False)) | {"1 layer, order 2": "black"}
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    titles = {"recall": ("Associative recall", "key/value pairs"), "induction": ("Induction", "tokens to copy")}
    for axis, (task, (title, label)) in zip(axes, titles.items(), strict=False):
        for place, (row, figures) in enumerate(report["summary"][task].items()):
            x = [int(size) for size in figures["accuracy"]]
            y = [100 * each["mean"] for each in figures["accuracy"].values()]
            low = [100 * (each["mean"] - each["min"]) for each in figures["accuracy"].values()]
            high = [100 * (each["max"] - each["mean"]) for each in figures["accuracy"].values()]
            style = "--" if "standard" in row or "looped" in row else "-"
            # side by side, or the bars, from the worst to the best seed, lie on each other
            beside = [size * 1.015**place for size in x]
            axis.plot(beside, y, style, marker="o", markersize=4, color=colours[row], label=row)
            axis.errorbar(beside, y, [low, high], fmt="none", color=colours[row], linewidth=0.7, alpha=0.7)
        axis.set_xscale("log", base=2)
        axis.set_xticks(x, x)
        axis.set(title=title, xlabel=label, ylabel="answers right, %", ylim=(-3, 103))
    x_recall = list(report["summary"]["recall"]["1 layer, standard"]["accuracy"])
    for row, figures in report["summary"]["recall"].items():
        hardest = list(figures["accuracy"].values())[-1]
        axes[2].plot(figures["relative_compute"], 100 * hardest["mean"], "o", markersize=8, color=colours[row])
    axes[2].set(title=f"Recall of {x_recall[-1]} pairs against compute", ylim=(-3, 103), xlim=(0, None))
    axes[2].set_xlabel("training FLOPs / those of one standard layer")
    for axis in axes:
        axis.grid(linewidth=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_attention(example: dict, path: Path) -> None:
    """Each level and head of one layer of order 2 on one text."""
    levels, heads = len(example["levels"]), len(example["levels"][0])
    figure, axes = plt.subplots(levels, heads, figsize=(3.1 * heads, 3.2 * levels), layout="constrained")
    tokens = example["tokens"]
    for level, row in enumerate(axes):
        for head, axis in enumerate(row):
            axis.imshow(example["levels"][level][head], vmin=0, vmax=100, cmap="Blues")
            axis.set_xticks(range(len(tokens)), tokens, fontsize=7)
            axis.set_yticks(range(len(tokens)), tokens, fontsize=7)
            axis.axhline(len(tokens) / 2 - 0.5, color="#999999", linewidth=0.6)
            name = "outer" if level == levels - 1 else "inner"
            axis.set_title(f"{name} attention, head {head}", fontsize=9)
    verdict = "rightly" if example["right"] else "wrongly"
    figure.suptitle(
        f"One layer of order 2 answers {verdict}: questions below the line, what they attend to from left to right",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
