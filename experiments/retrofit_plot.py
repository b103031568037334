"""The figure of the retrofit experiment: what each way of training brings, where gates open, what is forgotten."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

NESTED, SOURCE = "#d55e00", "#0072b2"
BRANCHES = {"query": "-", "key": "--"}
OPENED = {"order 2, everything": "#d55e00", "order 2, LoRA + gates": "#009e73", "order 2, gates": "#cc79a7"}
PANELS = {  # figure of the summary -> what stands on its axis
    "loss": "held-out loss, nats/token",
    "forgotten": "rise of the loss on other text",
    "mean_accuracy": "answers right",
}


def plot(summary: dict, path: Path) -> None:
    """One row for each corpus; the one without answers to be right has a wider panel of gates."""
    results = summary["results"]
    panels = {corpus: [name for name in PANELS if name in next(iter(results[corpus].values()))] for corpus in results}
    rows = [[f"{corpus} {name}" for name in panels[corpus]] for corpus in results]
    layout = [row + [f"{corpus} gates"] * (5 - len(row)) for corpus, row in zip(results, rows, strict=True)]
    height = sum(1.2 + 0.2 * len(methods) for methods in results.values())
    figure, axes = plt.subplot_mosaic(layout, figsize=(16, height), layout="constrained")
    for corpus, methods in results.items():
        before = summary["before"][corpus] | {"forgotten": 0.0}
        for number, name in enumerate(panels[corpus]):
            axis = axes[f"{corpus} {name}"]
            dots(axis, {method: figures[name] for method, figures in methods.items()}, before[name], PANELS[name])
            if name == "loss":
                cut(axis, {method: figures[name]["mean"] for method, figures in methods.items()}, before[name])
            if number > 0:
                axis.set_yticklabels([])
        axes[f"{corpus} loss"].set_title(corpus, loc="left", fontweight="bold")
        gates(axes[f"{corpus} gates"], methods)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def dots(axis: plt.Axes, figures: dict[str, dict], start: float, label: str) -> None:
    """A line of the axis for each method: its seeds as dots, their mean as a bar. Dotted: the model before."""
    for y, (method, figure) in enumerate(figures.items()):
        colour = NESTED if method.startswith("order") else SOURCE
        axis.plot(figure["values"], [y] * len(figure["values"]), "o", color=colour, markersize=4, alpha=0.7)
        axis.plot([figure["mean"]] * 2, [y - 0.35, y + 0.35], color=colour, linewidth=2)
    axis.axvline(start, color="black", linestyle=":", linewidth=1)
    axis.set_yticks(range(len(figures)), figures, fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.invert_yaxis()
    axis.set_xlabel(label, fontsize=9)
    axis.grid(axis="x", linewidth=0.3)


def cut(axis: plt.Axes, means: dict[str, float], start: float) -> None:
    """
    Ends the axis where the methods end that bring the loss at least half as far down as the best; of the others, which
    would press these together, the mean is written at the edge.
    """
    axis.set_xlabel(f"{axis.get_xlabel()}\n(before: {start:.3f})", fontsize=9)
    half = (min(means.values()) + start) / 2
    if half <= min(means.values()):  # nothing was learned
        return
    seen = [x for line in axis.lines for x in line.get_xdata() if x <= half]
    low, high = min(seen), max(seen)
    axis.set_xlim(low - 0.05 * (high - low), high + 0.3 * (high - low))
    for y, mean in enumerate(means.values()):
        if mean > half:
            edge = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 8}
            axis.text(0.98, y, f"{mean:.3f} →", **edge)


def gates(axis: plt.Axes, methods: dict[str, dict]) -> None:
    """Where the gates stand after training, by layer, the mean of the seeds."""
    for method, colour in OPENED.items():
        for branch, style in BRANCHES.items():
            values = methods.get(method, {}).get("scalars", {}).get(f"{branch}_gate_1")
            if values:
                label = f"{method.removeprefix('order 2, ')}: {branch}"
                axis.plot(range(len(values)), values, style, color=colour, marker=".", linewidth=1, label=label)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("layer", fontsize=9)
    axis.set_ylabel("gate (0 closed, 1 fully nested)", fontsize=9)
    axis.grid(linewidth=0.3)
    axis.legend(fontsize=7, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
