"""The figures of recall, hops, rank and language, each drawn from the report of its experiment."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from .models import label

STANDARD, NESTED, RIVAL = "#555555", "#d55e00", "#0072b2"


def recall(report: dict, path: Path) -> None:
    rows = list(report["summary"]["recall"])
    colours = dict(zip(rows, plt.get_cmap("tab20").colors, strict=False)) | {"1 layer, order 2": "black"}
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    titles = {"recall": ("Associative recall", "key/value pairs"), "induction": ("Induction", "tokens to copy")}
    for axis, (task, (title, unit)) in zip(axes, titles.items(), strict=False):
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
        axis.set(title=title, xlabel=unit, ylabel="answers right, %", ylim=(-3, 103))
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


def recall_attention(example: dict, path: Path) -> None:
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


def hops(report: dict, path: Path, nodes: int) -> None:
    cells = list(report["summary"]["models"].values())
    layers = sorted({cell["layers"] for cell in cells})
    variants = list(dict.fromkeys(cell["variant"] for cell in cells))
    most = len(cells[0]["accuracy"])
    figure, axes = plt.subplots(1, most + 1, figsize=(3.1 * (most + 1) + 1.5, 3.9), layout="constrained")
    for axis, k in zip(axes, range(1, most + 1), strict=False):
        table = [[math.nan] * len(variants) for _ in layers]
        for cell in cells:
            y, x = layers.index(cell["layers"]), variants.index(cell["variant"])
            table[y][x] = right = 100 * cell["accuracy"][str(k)]["mean"]
            shade = "black" if right > 60 else "white"
            axis.text(x, y, f"{right:.0f}", ha="center", va="center", color=shade, fontsize=10)
        axis.imshow(table, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axis.set_xticks(range(len(variants)), variants, rotation=30, ha="right", fontsize=8)
        axis.set_yticks(range(len(layers)), layers)
        axis.set_title(f"{k} hop{'s' if k > 1 else ''}", fontsize=10)
    axes[0].set_ylabel("layers")
    for variant, colour in zip(variants, ("#555555", "#d55e00", "#009e73", "#0072b2", "#e69f00"), strict=False):
        same = [cell for cell in cells if cell["variant"] == variant]
        x = [cell["relative_compute"] for cell in same]
        y = [100 * sum(each["mean"] for each in cell["accuracy"].values()) / most for cell in same]
        axes[-1].plot(x, y, "o-", color=colour, label=variant, markersize=4)
    axes[-1].set(xlabel="training FLOPs / one standard layer's", ylim=(0, 103))
    axes[-1].set_title("all questions, against compute", fontsize=10)
    axes[-1].legend(fontsize=8, frameon=False)
    axes[-1].grid(linewidth=0.3)
    figure.suptitle(f"Pointer chasing among {nodes} nodes: answers right, % (mean of three seeds)", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def rank(report: dict, path: Path) -> None:
    lengths = sorted({row["length"] for row in report["summary"]["marker"]})
    figure, axes = plt.subplots(1, 2 + len(lengths), figsize=(5 * (2 + len(lengths)) * 0.8, 3.8), layout="constrained")
    titles = {
        "context_rank": "Rank over contexts of the logits\nbetween tokens that stay the same (at most 135)",
        "logit_rank": "Rank of the logits of one text\n(head_dim 16)",
    }
    colours = {"standard": "#555555", "order 2": "#d55e00", "order 3": "#009e73", "looped": "#0072b2"}
    for axis, (name, title) in zip(axes, titles.items(), strict=False):
        for place, state in enumerate(("initial", "trained")):
            for offset, variant in enumerate(report["summary"]["ranks"]):
                spread = report["summary"]["ranks"][variant][state][name]
                x = place + 0.27 * (offset - 1)
                label = variant if place == 0 else None
                axis.bar(x, spread["mean"], 0.24, color=colours[variant], label=label)
                axis.text(x, spread["mean"], f"{spread['mean']:.0f}", ha="center", va="bottom", fontsize=8)
        axis.set_xticks((0, 1), ("at initialisation", "trained on recall"))
        axis.set_title(title, fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    for axis, length in zip(axes[2:], lengths, strict=True):
        rows = [row for row in report["summary"]["marker"] if row["length"] == length]
        for place, variant in enumerate(dict.fromkeys(row["variant"] for row in rows)):
            points = [row for row in rows if row["variant"] == variant]
            means = [100 * row["accuracy"]["mean"] for row in points]
            low = [100 * (row["accuracy"]["mean"] - row["accuracy"]["min"]) for row in points]
            high = [100 * (row["accuracy"]["max"] - row["accuracy"]["mean"]) for row in points]
            widths = [row["width"] * 1.04**place for row in points]  # side by side, or one hides the other
            axis.errorbar(widths, means, [low, high], fmt="o-", color=colours[variant], label=variant, markersize=4)
        axis.set_xscale("log", base=2)
        ticks = sorted({row["width"] for row in rows})
        axis.set_xticks(ticks, ticks)
        axis.set_ylim(-3, 106)
        axis.set_xlabel("width of the one layer")
        axis.set_title(f"The token after the marker,\n{length} tokens: answers right, %", fontsize=9)
        axis.grid(linewidth=0.3)
        axis.legend(fontsize=8, frameon=False, loc="upper right", bbox_to_anchor=(1, 0.93))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def colour(name: str) -> str:
    return RIVAL if name.startswith("looped") else STANDARD if name.startswith("standard") else NESTED


def dots(axis, summary: dict, title: str) -> None:
    """One line per model, best at the top: the mean, and a bar from the best to the worst seed."""
    ranked = sorted(summary.items(), key=lambda item: -item[1]["bits_per_byte"]["mean"])
    for place, (name, figures) in enumerate(ranked):
        spread = figures["bits_per_byte"]
        axis.plot([spread["min"], spread["max"]], [place, place], color=colour(name), linewidth=2)
        axis.plot(spread["mean"], place, "o", color=colour(name), markersize=6)
    names = []
    for name, figures in ranked:
        compute = figures.get("relative_compute")
        names.append(name if compute is None or abs(compute - 1) < 0.02 else f"{name}  ({compute:.2f} x FLOPs)")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.grid(axis="x", linewidth=0.3)
    axis.set_xlabel("held-out bits per byte", fontsize=8)


def nestings(axis, summary: dict, standard: float) -> None:
    """A map: which layers are nested x the order that they have, coloured by how far it is from the standard model."""
    orders = sorted({name.replace("1", "").strip()[0] for name in summary})
    rows = list(dict.fromkeys(name.replace(orders[-1], orders[0]) for name in summary))
    values = [[summary[row.replace(orders[0], order)]["bits_per_byte"]["mean"] for order in orders] for row in rows]
    reach = max(abs(value - standard) for row in values for value in row)
    axis.imshow(values, cmap="RdBu_r", vmin=standard - reach, vmax=standard + reach, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            dark = abs(value - standard) > 0.6 * reach
            axis.text(x, y, f"{value:.3f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(len(orders)), [f"order {order}" for order in orders], fontsize=8)
    axis.set_yticks(range(len(rows)), [row.replace(orders[0], "n") for row in rows], fontsize=8)
    axis.set_xlabel(f"n: nested; blue: fewer bits per byte than standard, {standard:.3f}", fontsize=8)


def language(report: dict, path: Path) -> None:
    summary = report["summary"]
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")
    dots(axes[0][0], summary["ablation"], "Equal parameters and steps, three seeds")
    standard = summary["ablation"]["standard"]["bits_per_byte"]["mean"]
    for axis, stage in zip(axes[0][1:], ("map, equal steps", "map, equal compute"), strict=True):
        nestings(axis, summary[stage], standard)
        axis.set_title(f"Which layers are nested{stage.removeprefix('map')}, one seed", fontsize=9)
    dots(axes[1][0], summary["finalists"], "Equal compute, three seeds")
    dots(axes[1][1], summary["longer"], "Longer, equal compute, three seeds")
    dots(axes[1][2], summary["larger"], "Larger, equal compute, three seeds")
    device = report["device"]["name"]
    figure.suptitle(f"Shakespeare, held-out works; {device}, {report['date'][:10]}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    curves(axes[0], report["runs"], summary["finalists"], "Training loss at equal compute")
    curves(axes[1], report["runs"], summary["longer"], "Longer")
    figure.savefig(path.with_name(f"{path.stem}_curves.png"), dpi=110)
    plt.close(figure)


def curves(axis, runs: list[dict], stage: dict, title: str) -> None:
    """Training loss against training FLOPs, mean of the seeds."""
    colours = plt.get_cmap("tab20").colors[::2] + plt.get_cmap("tab20").colors[1::2]
    for (name, figures), shade in zip(stage.items(), colours, strict=False):
        same = [run for run in runs if is_of(run, name, figures)]
        points = [[value for _, value in run["result"]["curve"]] for run in same]
        count = min(map(len, points))
        mean = [sum(each[i] for each in points) / len(points) for i in range(count)]
        share = [(i + 1) / count * figures["training_flops"] for i in range(count)]
        style = "--" if name.startswith("standard") else "-"
        axis.plot(share[2:], mean[2:], style, color=shade, label=name, linewidth=1.3)
    axis.set(xlabel="training FLOPs", ylabel="training loss, nats per token")
    axis.set_title(title, fontsize=9)
    axis.grid(linewidth=0.3)
    axis.legend(fontsize=8, frameon=False)


def is_of(run: dict, name: str, figures: dict) -> bool:
    """Whether the run is one of those that the summary's `figures` of a model are the mean of."""
    named = label(run["settings"]) == name.removesuffix(", deeper").removesuffix(", wider")
    result = run["result"]
    alike = all(run["settings"][key] == figures[key] for key in ("learning_rate", "steps"))
    return named and alike and all(result[key] == figures[key] for key in ("parameters", "training_flops"))
