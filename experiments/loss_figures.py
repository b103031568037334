"""The figures of losses, each drawn from the report of its experiment."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import COLOURS, NESTED, NESTED_TWICE, RIVAL, STANDARD

ROWS_OF_GAINS = {
    "first layer": RIVAL,
    "first layer, window 16": NESTED,
    "standard, first layer sees 16": STANDARD,
    "first layer, sees 16": NESTED_TWICE,
}


def bar(axis: Axes, place: float, losses: dict, colour: str, label: str | None = None) -> None:
    """On a line of its own the mean of the seeds, and a bar from the smallest to the largest."""
    ends = [[losses["mean"] - losses["min"]], [losses["max"] - losses["mean"]]]
    axis.errorbar(losses["mean"], place, xerr=ends, fmt="o", color=colour, label=label, markersize=5)


def dots(axis: Axes, summary: dict, title: str) -> None:
    """One line per model, best at the top: the mean, and a bar from the best to the worst seed."""
    ranked = sorted(summary.items(), key=lambda item: -item[1]["bits_per_byte"]["mean"])
    names = []
    for place, (name, figures) in enumerate(ranked):
        colour = COLOURS.get(name.split(",")[0], NESTED)
        spread, compute = figures["bits_per_byte"], figures.get("relative_compute", 1)
        axis.plot([spread["min"], spread["max"]], [place, place], color=colour, linewidth=2)
        axis.plot(spread["mean"], place, "o", color=colour, markersize=6)
        names.append(name if abs(compute - 1) < 0.02 else f"{name}  ({compute:.2f} x FLOPs)")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(title=title, xlabel="held-out bits per byte")
    axis.grid(axis="x")


def nestings(axis: Axes, summary: dict, standard: float) -> None:
    """A map: which layers are nested x the order that they have, coloured by how far it is from the standard model."""
    orders = sorted({name.replace("1", "").strip()[0] for name in summary})
    rows = list(dict.fromkeys(name.replace(orders[-1], orders[0]) for name in summary))
    values = [[summary[row.replace(orders[0], order)]["bits_per_byte"]["mean"] for order in orders] for row in rows]
    reach = max(abs(value - standard) for row in values for value in row)
    axis.imshow(values, cmap="RdBu_r", vmin=standard - reach, vmax=standard + reach, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            colour = "white" if abs(value - standard) > 0.6 * reach else "black"
            axis.text(x, y, f"{value:.3f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(orders)), [f"order {order}" for order in orders], fontsize=8)
    axis.set_yticks(range(len(rows)), [row.replace(orders[0], "n") for row in rows], fontsize=8)
    axis.set_xlabel(f"n: nested; blue: fewer bits per byte than standard, {standard:.3f}")


def language(report: dict, path: Path) -> None:
    summary = report["summary"]
    figure = Figure(figsize=(16, 9))
    axes = figure.subplots(2, 3).flat
    standard = summary["ablation"]["standard"]["bits_per_byte"]["mean"]
    dots(axes[0], summary["ablation"], "Equal parameters and steps, three seeds")
    for axis, at in zip(axes[1:3], ("equal steps", "equal compute"), strict=True):
        nestings(axis, summary[f"map, {at}"], standard)
        axis.set_title(f"Which layers are nested, {at}, one seed")
    dots(axes[3], summary["finalists"], "Equal compute, three seeds")
    dots(axes[4], summary["longer"], "Longer, equal compute, three seeds")
    dots(axes[5], summary["larger"], "Larger, equal compute, three seeds")
    device = report["device"]["name"]
    figure.suptitle(f"Shakespeare, held-out works; {device}, {report['date'][:10]}", fontsize=10)
    figure.savefig(path)


def scale(report: dict, path: Path) -> None:
    """
    Gain over the standard model at equal compute, seed by seed, of all tokens and by kind of token: a line for each row
    of each corpus, size and length of training.
    """
    colours = {"first layer, window 16": NESTED, "standard, first layer sees 16": STANDARD}
    names, gains = [], []
    for stage, rows in report["summary"].items():
        nested = {row: found["gain"] for row, found in rows.items() if "gain" in found}
        names += [stage, *nested] if nested else []
        gains += [None, *nested.values()] if nested else []
    figure = Figure(figsize=(13, 0.8 + 0.24 * len(names)))
    axes = figure.subplots(1, 3, sharey=True)
    panels = {
        "bits_per_byte": "all tokens, bits per byte",
        "bits_repeated": "repeated pairs, bits per token",
        "bits_new": "all others, bits per token",
    }
    for axis, (measure, title) in zip(axes, panels.items(), strict=True):
        for place, (name, gain) in enumerate(zip(names, gains, strict=True)):
            if gain is not None:
                bar(axis, place, gain[measure], colours.get(name, RIVAL))
        axis.axvline(0, color=STANDARD, linewidth=0.8)
        axis.locator_params("x", nbins=5)
        axis.set(title=f"Gain over standard: {title}", yticks=range(len(names)), yticklabels=names)
        axis.grid(axis="x")
    for label, gain in zip(axes[0].get_yticklabels(), gains, strict=True):
        label.set_fontweight("bold" if gain is None else "normal")
    axes[0].invert_yaxis()
    figure.savefig(path)


def gains(report: dict, path: Path) -> None:
    """
    Gain over the standard model at equal compute: of each corpus and size against the length of training, and of each
    corpus and length against size, wherever there are several. The mean of the seeds, and their spread.
    """
    stages = {tuple(name.removesuffix(" x").split(", ")): rows for name, rows in report["summary"].items()}
    panels: dict[str, dict] = {}
    for (corpus, _, longer), rows in stages.items():
        millions = round(rows["standard"]["parameters"] / 1e6, 1)
        panels.setdefault(f"{corpus}, {millions} million parameters", {})[int(longer)] = rows
        panels.setdefault(f"{corpus}, {longer} x", {})[millions] = rows
    panels = {title: by for title, by in panels.items() if len(by) > 1}
    figure = Figure(figsize=(4 * len(panels) + 1, 3.8))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, by) in zip(axes, panels.items(), strict=True):
        for shift, (row, colour) in enumerate(ROWS_OF_GAINS.items()):
            found = {x: rows[row]["gain"]["bits_per_byte"] for x, rows in by.items() if row in rows}
            mean, low, high = ([each[name] for each in found.values()] for name in ("mean", "min", "max"))
            ends = [
                [y - end for y, end in zip(mean, low, strict=True)],
                [end - y for y, end in zip(mean, high, strict=True)],
            ]
            x = [each * 1.03**shift for each in found]  # side by side
            axis.errorbar(x, mean, ends, fmt="o-", color=colour, label=row, markersize=4, elinewidth=0.8)
        axis.axhline(0, color=STANDARD, linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xticks(list(by), [f"{each:g}" for each in by])
        axis.minorticks_off()
        axis.set(title=title, xlabel="million parameters" if title.endswith(" x") else "times as many steps")
        axis.grid(axis="y")
    axes[0].set_ylabel("gain over standard at equal compute,\nbits per byte: more is better")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path)


def arms(report: dict, path: Path) -> None:
    """Held-out bits per byte of each arm, at equal steps and at equal compute, beside the paper's accuracy."""
    summary = report["summary"]
    figure = Figure(figsize=(11, 3))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for shift, (at, colour) in zip((-0.12, 0.12), {"equal steps": RIVAL, "equal compute": NESTED}.items(), strict=True):
        for place, (row, found) in enumerate(summary.items()):
            if at in found:
                label = at if row == list(summary)[-1] else None
                bar(left, place + shift, found[at]["bits_per_byte"], colour, label)
    of_baseline = next(iter(summary.values()))["equal steps"]["bits_per_byte"]
    left.axvspan(of_baseline["min"], of_baseline["max"], color=STANDARD, alpha=0.15, label="baseline, its seeds")
    left.set_yticks(range(len(summary)), list(summary))
    left.set(title="Here: Shakespeare, half a million parameters", xlabel="held-out bits per byte: less is better")
    left.invert_yaxis()
    left.legend()
    accuracies = [100 * found["paper"] for found in summary.values()]
    right.plot(accuracies, range(len(summary)), "o", color=STANDARD)
    right.set(title="The paper: Pythia 70M", xlabel="mean accuracy, %: more is better")
    for axis in (left, right):
        axis.grid(axis="x")
    figure.savefig(path)


def retrofit_forms(report: dict, path: Path) -> None:
    """
    The held-out loss after short and long training: the mean of the seeds, and a bar from the best to the worst. What
    is far above the source stands as a number at the edge.
    """
    lengths = [name for name in ("short", "long") if name in report["summary"]]
    figure = Figure(figsize=(11, 3.2))
    for axis, length in zip(figure.subplots(1, len(lengths), squeeze=False)[0], lengths, strict=True):
        rows = report["summary"][length]
        limit = 1.1 * rows["source"]["loss"]["mean"]
        for place, (row, found) in enumerate(rows.items()):
            if found["loss"]["mean"] < limit:
                bar(axis, place, found["loss"], STANDARD if "source" in row else NESTED)
            else:
                edge = {"ha": "right", "va": "center", "transform": axis.get_yaxis_transform()}
                axis.text(0.99, place, f"{found['loss']['mean']:.2f} →", color=NESTED, **edge)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.margins(x=0.15)
        steps = rows["source"]["steps"]
        axis.set(title=f"The compute of {steps} steps of the source", xlabel="held-out loss, nats per token")
        axis.grid(axis="x")
    figure.savefig(path)
