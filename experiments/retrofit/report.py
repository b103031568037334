"""What the runs of the retrofit experiment say, by corpus and method: the summary and the figure."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..runs import by_settings, grouped, mean_and_spread, over_seeds

NESTED, SOURCE = "#d55e00", "#0072b2"
BRANCHES = {"query": "-", "key": "--"}
OPENED = {"order 2, everything": "#d55e00", "order 2, LoRA + gates": "#009e73", "order 2, gates": "#cc79a7"}
PANELS = {  # figure of the summary -> what stands on its axis
    "loss": "held-out loss, nats/token",
    "forgotten": "rise of the loss on other text",
    "mean_accuracy": "answers right",
}
FIGURES = ("loss", "other_loss", "validation_loss", "mean_accuracy")


def summarise(
    stages: dict[str, list[dict]], rivals: dict[str, str], recipes: Sequence[tuple[str, str, str]] = ()
) -> dict:
    """
    Args:
        stages: The records of the stages that are done, by name.
        rivals: Nested method -> the method of the source that it is compared with, at equal steps under this name and
            at equal compute under the name "…, longer".
        recipes: Corpus, best recipe of the nested method, and that of the source at equal compute.
    """
    records = list({json.dumps(each["settings"]): each for stage in stages.values() for each in stage}.values())
    before = {each["settings"]["corpus"]: each for each in records if each["settings"]["method"] == "source"}
    chosen = choose([each for each in records if each["settings"]["steps"] > 0])
    results: dict = {}
    for (corpus, method), (same, tries) in chosen.items():
        if corpus in before:
            described = describe(same, before[corpus]["result"]) | {"settings_tried": tries}
            results.setdefault(corpus, {})[method] = described
    pairs = [
        (corpus, nested, name, at)
        for corpus in results
        for nested, rival in rivals.items()
        for at, name in (("equal steps", rival), ("equal compute", f"{rival}, longer"))
    ]
    pairs += [(*recipe, "equal compute") for recipe in recipes]
    there = [pair for pair in pairs if all((pair[0], method) in chosen for method in pair[1:3])]
    return {
        "stages": list(stages),
        "before": {corpus: untrained(corpus, records) for corpus in before},
        "comparisons": [compare(*pair, chosen) for pair in there],
        "results": results,
    }


def choose(records: list[dict]) -> dict[tuple[str, str], tuple[list[dict], int]]:
    """
    For each corpus and method the runs that differ in the seed alone: of the settings with most seeds those with the
    least validation loss. And how many settings were tried.
    """
    chosen = {}
    for key, runs in by_settings(records, "corpus", "method").items():
        tried = grouped(runs, lambda each: json.dumps(each["settings"] | {"seed": None})).values()
        best = min(tried, key=lambda same: (-len(same), over_seeds(same, "validation_loss")["mean"]))
        chosen[key] = (best, len(tried))
    return chosen


def describe(same: list[dict], start: dict) -> dict:
    """Figures over the seeds. `forgotten` is the rise of the loss on the text that was not trained on."""
    results, settings = [record["result"] for record in same], same[0]["settings"]
    first = results[0]
    described = {name: settings[name] for name in ("learning_rate", "scalar_learning_rate", "steps")}
    for figure in FIGURES:
        if figure in first:
            described[figure] = spread([result[figure] for result in results])
    described["forgotten"] = spread([result["other_loss"] - start["other_loss"] for result in results])
    if "accuracy" in first:
        described["accuracy"] = {task: over_seeds(same, "accuracy", task) for task in first["accuracy"]}
    return described | {
        **{name: first[name] for name in ("trained_parameters", "training_flops")},
        "training_cpu_seconds": round(over_seeds(same, "training_cpu_seconds")["mean"], 1),
        "scalars": {kind: by_layer([result["scalars"][kind] for result in results]) for kind in first["scalars"]},
    }


def spread(values: list[float]) -> dict:
    return mean_and_spread(values) | {"values": values}


def by_layer(scalars: list[list[float | None]]) -> list[float | None]:
    """The mean over the seeds of each layer."""
    return [None if each[0] is None else round(sum(each) / len(each), 5) for each in zip(*scalars, strict=True)]


def untrained(corpus: str, records: list[dict]) -> dict:
    """The source, and by how much the model with closed gates differs from it: by nothing."""
    same = [each for each in records if each["settings"]["steps"] == 0 and each["settings"]["corpus"] == corpus]
    source, *others = [each["result"] for each in sorted(same, key=lambda each: each["settings"]["order"])]
    kept = {name: source[name] for name in (*FIGURES, "accuracy") if name in source}
    return kept | {"closed_gates_differ_by": max((abs(each["loss"] - source["loss"]) for each in others), default=None)}


def compare(corpus: str, nested: str, rival: str, at: str, chosen: dict) -> dict:
    """Nested minus rival, seed by seed: runs with one seed see the same data in the same order."""
    ours, theirs = (
        {record["settings"]["seed"]: record["result"] for record in chosen[corpus, method][0]}
        for method in (nested, rival)
    )
    seeds = sorted(ours.keys() & theirs.keys())
    compared = {"corpus": corpus, "nested": nested, "rival": rival, "at": at}
    for figure in FIGURES:
        if seeds and figure in ours[seeds[0]]:
            compared[figure] = spread([ours[seed][figure] - theirs[seed][figure] for seed in seeds])
    return compared


def plot(summary: dict, path: Path) -> None:
    """One row for each corpus; the one without answers to be right has a wider panel of gates."""
    results = summary["results"]
    panels = {corpus: [name for name in PANELS if name in next(iter(results[corpus].values()))] for corpus in results}
    layout = [
        [f"{corpus} {name}" for name in names] + [f"{corpus} gates"] * (5 - len(names))
        for corpus, names in panels.items()
    ]
    height = sum(1.2 + 0.2 * len(methods) for methods in results.values())
    figure = Figure(figsize=(16, height), layout="constrained")
    axes = figure.subplot_mosaic(layout)
    for corpus, methods in results.items():
        before = summary["before"][corpus] | {"forgotten": 0.0}
        for name in panels[corpus]:
            figures = {method: each[name] for method, each in methods.items()}
            dots(axes[f"{corpus} {name}"], figures, before[name], PANELS[name])
            if name != "loss":
                axes[f"{corpus} {name}"].set_yticklabels([])
        cut(axes[f"{corpus} loss"], [each["loss"]["mean"] for each in methods.values()], before["loss"])
        axes[f"{corpus} loss"].set_title(corpus, loc="left", fontweight="bold")
        gates(axes[f"{corpus} gates"], methods)
    figure.savefig(path, dpi=110)


def dots(axis: Axes, figures: dict[str, dict], start: float, label: str) -> None:
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


def cut(axis: Axes, means: list[float], start: float) -> None:
    """
    Ends the axis where the methods end that bring the loss at least half as far down as the best; of the others, which
    would press these together, the mean is written at the edge.
    """
    axis.set_xlabel(f"{axis.get_xlabel()}\n(before: {start:.3f})", fontsize=9)
    half = (min(means) + start) / 2
    if half <= min(means):  # nothing was learned
        return
    seen = [x for line in axis.lines for x in line.get_xdata() if x <= half]
    low, high = min(seen), max(seen)
    axis.set_xlim(low - 0.05 * (high - low), high + 0.3 * (high - low))
    for y, mean in enumerate(means):
        if mean > half:
            edge = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 8}
            axis.text(0.98, y, f"{mean:.3f} →", **edge)


def gates(axis: Axes, methods: dict[str, dict]) -> None:
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
