"""What the runs of the retrofit experiment say, by corpus and method: the summary and the figure."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from ..runs import mean_and_spread

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
    trained = [each for each in records if each["settings"]["steps"] > 0]
    chosen = choose(trained)
    results: dict = {}
    for (corpus, method), (same, tries) in chosen.items():
        if corpus not in before:
            continue
        start = before[corpus]["result"]
        results.setdefault(corpus, {})[method] = describe(same, start) | {"settings_tried": tries}
    corpora = list(results)
    pairs = [
        (corpus, nested, name, at)
        for corpus in corpora
        for nested, rival in rivals.items()
        for at, name in (("equal steps", rival), ("equal compute", f"{rival}, longer"))
    ]
    pairs += [(*recipe, "equal compute") for recipe in recipes]
    return {
        "stages": list(stages),
        "before": {corpus: untrained(corpus, records) for corpus in before},
        "comparisons": [compared for pair in pairs if (compared := compare(*pair, chosen))],
        "results": results,
    }


def choose(records: list[dict]) -> dict[tuple[str, str], tuple[list[dict], int]]:
    """
    For each corpus and method the runs that differ in the seed alone: of the settings with most seeds those with the
    least validation loss. And how many settings were tried.
    """
    groups: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for record in records:
        settings = record["settings"]
        alike = json.dumps({name: value for name, value in settings.items() if name != "seed"})
        groups.setdefault((settings["corpus"], settings["method"]), {}).setdefault(alike, []).append(record)
    return {
        key: (min(tried.values(), key=lambda same: (-len(same), mean(same, "validation_loss"))), len(tried))
        for key, tried in groups.items()
    }


def mean(records: list[dict], figure: str) -> float:
    return mean_and_spread([record["result"][figure] for record in records])["mean"]


def describe(same: list[dict], start: dict) -> dict:
    """Figures over the seeds. `forgotten` is the rise of the loss on the text that was not trained on."""
    results = [record["result"] for record in same]
    settings = same[0]["settings"]
    described = {name: settings[name] for name in ("learning_rate", "scalar_learning_rate", "steps")}
    for figure in FIGURES:
        if figure in results[0]:
            values = [result[figure] for result in results]
            described[figure] = mean_and_spread(values) | {"values": values}
    forgotten = [result["other_loss"] - start["other_loss"] for result in results]
    described["forgotten"] = mean_and_spread(forgotten) | {"values": forgotten}
    for task in results[0].get("accuracy", {}):
        values = [result["accuracy"][task] for result in results]
        described.setdefault("accuracy", {})[task] = mean_and_spread(values)
    return described | {
        "trained_parameters": results[0]["trained_parameters"],
        "training_flops": results[0]["training_flops"],
        "training_cpu_seconds": round(sum(result["training_cpu_seconds"] for result in results) / len(results), 1),
        "scalars": {
            kind: over_seeds([result["scalars"][kind] for result in results]) for kind in results[0]["scalars"]
        },
    }


def over_seeds(layers: list[list[float | None]]) -> list[float | None]:
    """The mean of each layer."""
    return [None if each[0] is None else round(sum(each) / len(each), 5) for each in zip(*layers, strict=True)]


def untrained(corpus: str, records: list[dict]) -> dict:
    """The source, and by how much the model with closed gates differs from it: by nothing."""
    same = [each for each in records if each["settings"]["steps"] == 0 and each["settings"]["corpus"] == corpus]
    source, *others = [each["result"] for each in sorted(same, key=lambda each: each["settings"]["order"])]
    kept = {name: source[name] for name in (*FIGURES, "accuracy") if name in source}
    return kept | {"closed_gates_differ_by": max((abs(each["loss"] - source["loss"]) for each in others), default=None)}


def compare(corpus: str, nested: str, rival: str, at: str, chosen: dict) -> dict | None:
    """Nested minus rival, seed by seed: runs with one seed see the same data in the same order."""
    if (corpus, nested) not in chosen or (corpus, rival) not in chosen:
        return None
    by_seed = [
        {record["settings"]["seed"]: record["result"] for record in chosen[corpus, method][0]}
        for method in (nested, rival)
    ]
    seeds = sorted(set(by_seed[0]) & set(by_seed[1]))
    compared = {"corpus": corpus, "nested": nested, "rival": rival, "at": at}
    for figure in FIGURES:
        if seeds and figure in by_seed[0][seeds[0]]:
            values = [by_seed[0][seed][figure] - by_seed[1][seed][figure] for seed in seeds]
            compared[figure] = mean_and_spread(values) | {"values": values}
    return compared


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
