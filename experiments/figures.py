"""The figures of accuracies, of ranks and of the encoder, each drawn from the report of its experiment."""

import math
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .synthetic import GUESSES

matplotlib.rc("axes", titlesize=9, labelsize=9)
matplotlib.rc("legend", fontsize=8, frameon=False)
matplotlib.rc("grid", linewidth=0.3)
matplotlib.rc("savefig", dpi=120)
matplotlib.rc("figure.constrained_layout", use=True)

STANDARD, NESTED, NESTED_TWICE, RIVAL = "#555555", "#d55e00", "#009e73", "#0072b2"
COLOURS = {"standard": STANDARD, "order 2": NESTED, "order 3": NESTED_TWICE, "looped": RIVAL}
COLOURS |= {"order 2, with W_O": "#e69f00", "separate": "#cc79a7"}
TAB20 = matplotlib.colormaps["tab20"].colors


def seeds(axis: Axes, x: list[float], accuracies: list[dict], style: str, **options) -> None:
    """Accuracies in percent: the mean, and a bar from the worst to the best seed."""
    mean, low, high = ([100 * each[name] for each in accuracies] for name in ("mean", "min", "max"))
    down, up = ([abs(y - end) for y, end in zip(mean, ends, strict=True)] for ends in (low, high))
    axis.errorbar(x, mean, [down, up], fmt=style, markersize=4, elinewidth=0.7, **options)


def recall(report: dict, path: Path) -> None:
    summary = report["summary"]
    colours = dict(zip(summary["recall"], TAB20, strict=False)) | {"1 layer, order 2": "black"}
    figure = Figure(figsize=(14, 4.6))
    axes = figure.subplots(1, 3)
    titles = {"recall": ("Associative recall", "key/value pairs"), "induction": ("Induction", "tokens to copy")}
    for axis, (task, (title, unit)) in zip(axes, titles.items(), strict=False):
        for place, (row, figures) in enumerate(summary[task].items()):
            sizes = [int(size) for size in figures["accuracy"]]
            # side by side, or the bars lie on each other
            x = [size * 1.015**place for size in sizes]
            style = "--o" if "standard" in row or "looped" in row else "-o"
            seeds(axis, x, figures["accuracy"].values(), style, color=colours[row], label=row)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, sizes)
        axis.set(title=title, xlabel=unit, ylabel="answers right, %", ylim=(-3, 103))
    for row, figures in summary["recall"].items():
        *_, (size, hardest) = figures["accuracy"].items()
        axes[2].plot(figures["relative_compute"], 100 * hardest["mean"], "o", markersize=8, color=colours[row])
    axes[2].set(title=f"Recall of {size} pairs against compute", ylim=(-3, 103), xlim=(0, None))
    axes[2].set_xlabel("training FLOPs / those of one standard layer")
    for axis in axes:
        axis.grid()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path)


def recall_attention(example: dict, path: Path) -> None:
    """Each level and head of one layer of order 2 on one text."""
    tokens, levels = example["tokens"], example["levels"]
    figure = Figure(figsize=(3.1 * len(levels[0]), 3.2 * len(levels)))
    for level, axes in enumerate(figure.subplots(len(levels), len(levels[0]))):
        name = "outer" if level == len(levels) - 1 else "inner"
        for head, axis in enumerate(axes):
            axis.imshow(levels[level][head], vmin=0, vmax=100, cmap="Blues")
            axis.set_xticks(range(len(tokens)), tokens, fontsize=7)
            axis.set_yticks(range(len(tokens)), tokens, fontsize=7)
            axis.axhline(len(tokens) / 2 - 0.5, color="#999999", linewidth=0.6)
            axis.set_title(f"{name} attention, head {head}")
    verdict = "rightly" if example["right"] else "wrongly"
    figure.suptitle(
        f"One layer of order 2 answers {verdict}: questions below the line, what they attend to from left to right",
        fontsize=10,
    )
    figure.savefig(path)


def hops(report: dict, path: Path, nodes: int) -> None:
    cells = list(report["summary"]["models"].values())
    layers = sorted({cell["layers"] for cell in cells})
    variants = list(dict.fromkeys(cell["variant"] for cell in cells))
    most = len(cells[0]["accuracy"])
    figure = Figure(figsize=(3.1 * (most + 1) + 3, 3.9))
    *maps, last = figure.subplots(1, most + 1)
    for k, axis in enumerate(maps, start=1):
        table = [[math.nan] * len(variants) for _ in layers]
        for cell in cells:
            y, x = layers.index(cell["layers"]), variants.index(cell["variant"])
            table[y][x] = right = 100 * cell["accuracy"][str(k)]["mean"]
            axis.text(x, y, f"{right:.0f}", ha="center", va="center", color="black" if right > 60 else "white")
        axis.imshow(table, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axis.set_xticks(range(len(variants)), variants, rotation=30, ha="right", fontsize=8)
        axis.set_yticks(range(len(layers)), layers)
        axis.set_title(f"{k} hop{'s' if k > 1 else ''}")
    maps[0].set_ylabel("layers")
    for variant in variants:
        same = [cell for cell in cells if cell["variant"] == variant]
        y = [100 * sum(each["mean"] for each in cell["accuracy"].values()) / most for cell in same]
        compute = [cell["relative_compute"] for cell in same]
        last.plot(compute, y, "o-", color=COLOURS[variant], label=variant, markersize=4)
    last.set(title="all questions, against compute", xlabel="training FLOPs / one standard layer's", ylim=(0, 103))
    last.legend(loc="upper left", bbox_to_anchor=(1, 1))
    last.grid()
    figure.suptitle(f"Pointer chasing among {nodes} nodes: answers right, % (mean of three seeds)", fontsize=10)
    figure.savefig(path)


def rank(report: dict, path: Path) -> None:
    summary = report["summary"]
    lengths = sorted({row["length"] for row in summary["marker"]})
    figure = Figure(figsize=(4 * (2 + len(lengths)), 3.8))
    axes = figure.subplots(1, 2 + len(lengths))
    titles = {
        "context_rank": "Rank over contexts of the logits\nbetween tokens that stay the same (at most 135)",
        "logit_rank": "Rank of the logits of one text\n(head_dim 16)",
    }
    for axis, (name, title) in zip(axes, titles.items(), strict=False):
        for offset, (variant, states) in enumerate(summary["ranks"].items()):
            ranks = [states[state][name]["mean"] for state in ("initial", "trained")]
            places = [place + 0.21 * (offset - 1.5) for place in (0, 1)]
            bars = axis.bar(places, ranks, 0.19, color=COLOURS[variant], label=variant)
            axis.bar_label(bars, fmt="%.0f", fontsize=8)
        axis.set_xticks((0, 1), ("at initialisation", "trained on recall"))
        axis.set_title(title)
    for axis, length in zip(axes[2:], lengths, strict=True):
        rows = [row for row in summary["marker"] if row["length"] == length]
        for place, variant in enumerate(dict.fromkeys(row["variant"] for row in rows)):
            points = [row for row in rows if row["variant"] == variant]
            widths = [row["width"] * 1.04**place for row in points]  # side by side, or one hides the other
            seeds(axis, widths, [row["accuracy"] for row in points], "o-", color=COLOURS[variant], label=variant)
        ticks = sorted({row["width"] for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, ticks)
        title = f"The token after the marker,\n{length} tokens: answers right, %"
        axis.set(title=title, xlabel="width of the one layer", ylim=(-3, 106))
        axis.grid()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.savefig(path)


def window(report: dict, path: Path) -> None:
    """Quality against the window of the inner levels: a point is the mean of the seeds, a bar their spread."""
    titles = {
        "language": "Language modelling, equal compute",
        "recall": "Associative recall, one layer",
        "induction": "Induction, one layer",
        "hops": "Pointer chasing, two layers",
    }
    units = {"recall": "pairs", "induction": "tokens", "hops": "hops"}
    figure = Figure(figsize=(16, 3.8))
    for axis, (task, title) in zip(figure.subplots(1, 4), titles.items(), strict=True):
        rows = dict(report["summary"][task])
        standard, whole = rows.pop("standard", None), rows.pop("no window")
        rows["no window"] = whole  # at the right end
        names = [name.removeprefix("window ").replace("no window", "all") for name in rows]
        if task == "language":
            spreads = [row["bits_per_byte"] for row in rows.values()]
            mean, low, high = ([each[name] for each in spreads] for name in ("mean", "min", "max"))
            ends = [[abs(y - end) for y, end in zip(mean, each, strict=True)] for each in (low, high)]
            axis.errorbar(names, mean, ends, fmt="o", color=NESTED, label="first layer nested")
            of_standard = standard["bits_per_byte"]
            axis.axhspan(of_standard["min"], of_standard["max"], color=STANDARD, alpha=0.15)
            axis.axhline(of_standard["mean"], color=STANDARD, linewidth=1, label="standard")
            axis.set_ylabel("held-out bits per byte")
        else:
            sizes = list(whole["accuracy"])
            for size, colour in zip(sizes, (NESTED, RIVAL, STANDARD), strict=False):
                accuracies = [row["accuracy"][size] for row in rows.values()]
                label = f"{size} {units[task]}".replace("1 hops", "1 hop")
                seeds(axis, names, accuracies, "o-", color=colour, label=label)
            axis.set(ylabel="answers right, %", ylim=(-3, 103))
        axis.set(title=title, xlabel="tokens that an inner level attends to")
        axis.legend()
        axis.grid(axis="y")
    figure.savefig(path)


def encoder(report: dict, path: Path) -> None:
    """A bar for each row, with the spread of its seeds."""
    panels = {
        "facts": ("Masked facts, two hops to either side", "answers right, %", "accuracy", 100),
        "text": ("Masked text", "held-out bits per masked token", "bits_per_token", 1),
    }
    figure = Figure(figsize=(10, 3))
    for axis, (task, (title, label, name, unit)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        rows = report["summary"][task]
        mean, low, high = ([unit * row[name][each] for row in rows.values()] for each in ("mean", "min", "max"))
        ends = [[abs(x - end) for x, end in zip(mean, each, strict=True)] for each in (low, high)]
        colours = [STANDARD if "standard" in row else NESTED for row in rows]
        axis.barh(list(rows), mean, xerr=ends, color=colours, error_kw={"elinewidth": 0.8})
        axis.invert_yaxis()
        axis.set(title=f"{title}, equal compute", xlabel=label)
        if task == "text":
            axis.set_xlim(min(low) - 0.2, max(high) + 0.1)
    figure.savefig(path)


def chains(report: dict, path: Path) -> None:
    """Accuracy against depth, and that of assignments against look-ups: the mean of the seeds and their spread."""
    colours = {
        "standard": STANDARD,
        "nested: first layer": NESTED,
        "nested: all layers": RIVAL,
        "nested: all layers, window 4": NESTED_TWICE,
    }
    summary = report["summary"]
    figure = Figure(figsize=(9, 6.4))
    axes = figure.subplots(2, 2).flatten()
    for axis, (task, rows) in zip(axes, summary.items(), strict=False):
        for shift, (nested, colour) in enumerate(colours.items()):
            own = {name: row for name, row in rows.items() if name.split(", ", 1)[1] == nested}
            depths = [int(name.split()[0]) + 0.04 * shift for name in own]  # side by side
            seeds(axis, depths, [row["accuracy"] for row in own.values()], "o-", color=colour, label=nested)
        layers = sorted({int(name.split()[0]) for name in rows})
        axis.set(title=f"{task.capitalize()}, equal compute", xlabel="layers", xticks=layers, ylim=(-3, 103))
    for name, row in summary["assignments"].items():
        layers, nested = name.split(", ", 1)
        if layers == "1 layer":
            asked = [int(each) for each in row["by_look_ups"]]
            seeds(axes[3], asked, row["by_look_ups"].values(), "o-", color=colours[nested])
    axes[3].set(title="Assignments, 1 layer, equal compute", xlabel="look-ups that the answer takes", ylim=(-3, 103))
    for axis, task in zip(axes, [*summary, "assignments"], strict=True):
        axis.axhline(100 * GUESSES[task], color="black", linewidth=0.8, linestyle=":", label="the best guess")
        axis.grid(axis="y")
        axis.set_ylabel("answers right, %")
    axes[0].legend()
    figure.savefig(path)
