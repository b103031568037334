"""The PNGs: the heads that refining changes most, and the gates."""

import warnings
from io import BytesIO
from typing import Any

import numpy as np

from .collect import LayerView, Maps
from .words import label

ROWS = 5  # heads in the overview
LABELLED = 48  # tokens, up to which every one is labelled
BRANCH_COLOURS = {"query": "#1f5fbf", "key": "#c2570c", "value": "#2f7d4f"}


def figures(facts: dict[str, Any], views: list[LayerView]) -> dict[str, bytes]:
    """File name -> PNG. Raises `ImportError` without matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    with rc_context({"text.parse_math": False}):  # a dollar sign in a name or a token is a dollar sign
        files = {"overview.png": png(overview(Figure, facts, views))}
        if facts["gates"]:
            files["gates.png"] = png(gates(Figure, facts))
    return files


def most_changed(views: list[LayerView], count: int) -> list[tuple[int, int]]:
    """(layer, head), the largest change first."""
    heads = [(-change, layer, head) for layer, view in enumerate(views) for head, change in enumerate(view.change)]
    return [(layer, head) for _, layer, head in sorted(heads)[:count]]


def overview(Figure, facts: dict[str, Any], views: list[LayerView]):
    """One row per head: its maps side by side, and what refining adds to the first."""
    heads = most_changed(views, ROWS)
    columns = max(len(views[layer].maps) for layer, _ in heads)
    columns += columns > 1
    tokens = [label(token) for token in facts["tokens"]]
    side = min(max(2.4, 0.115 * len(tokens)), 5.0)  # inches of a map
    figure = Figure(figsize=(columns * side + 1.2, len(heads) * (side + 0.3) + 1.4), layout="constrained")
    grid = figure.subplots(len(heads), columns, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for row, (layer, head) in zip(grid, heads, strict=True):
        view = views[layer]
        maps = [each.weights(head, len(view.change)) for each in view.maps]
        for axes, weights, each in zip(row, maps, view.maps, strict=False):
            draw(axes, weights, f"layer {layer}, head {head}: {name_of(each, view.order)}", "Blues", 0.0)
        drawn = len(maps)
        if view.order > 1:
            first = "level 1" if view.maps[0].level == 1 else "unrefined"
            title = f"level {view.order} minus {first} ({view.change[head]:.2f} changed)"
            draw(row[drawn], maps[-1] - maps[0], title, "PuOr_r", -1.0)
            drawn += 1
        for axes in row[drawn:]:
            axes.set_frame_on(False)
    # As many labels as fit.
    ticks = range(0, len(tokens), -(-len(tokens) // LABELLED))
    size = min(7.0, 72 * 0.8 * side / min(len(tokens), LABELLED))
    labels = [tokens[i] for i in ticks]
    for axes in grid[-1]:
        axes.set_xticks(ticks, labels, rotation=90)
    for axes in grid[:, 0]:
        axes.set_yticks(ticks, labels)
    for axes in grid.flat:
        axes.tick_params(length=0, pad=2, labelsize=size)
    figure.suptitle(
        f"{facts['model']}: the heads that change most. Rows ask, columns are looked at; coloured by square root",
        fontsize=9,
    )
    return figure


def name_of(maps: Maps, order: int) -> str:
    if order == 1:
        return "order 1"
    if maps.level == 0:
        return "nothing refined"
    return f"level {maps.level} of {order}" + (f", {maps.branch}" if maps.branch else "")


def draw(axes, weights: np.ndarray, title: str, colours: str, lowest: float) -> None:
    future = np.triu(np.ones_like(weights, dtype=bool), 1)
    roots = np.sign(weights) * np.abs(weights) ** 0.5  # else small weights could not be seen
    axes.imshow(np.ma.array(roots, mask=future), cmap=colours, vmin=lowest, vmax=1.0, interpolation="nearest")
    axes.set_title(title, fontsize=8, loc="left")
    for spine in axes.spines.values():
        spine.set_color("#bbbbbb")


def gates(Figure, facts: dict[str, Any]):
    """Bars by layer, one set for every level that is refined."""
    levels = sorted({gate["level"] for gate in facts["gates"]})
    branches = [branch for branch in BRANCH_COLOURS if branch in {gate["branch"] for gate in facts["gates"]}]
    width = 0.8 / len(branches)
    layers = sorted({gate["layer"] for gate in facts["gates"]})
    figure = Figure(figsize=(min(max(4.0, 0.33 * len(layers) + 1.5), 24.0), 2.6 * len(levels)), layout="constrained")
    grid = figure.subplots(len(levels), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axes, level in zip(grid, levels, strict=True):
        for number, branch in enumerate(branches):
            offset = (number - (len(branches) - 1) / 2) * width
            values = {
                gate["layer"]: gate["value"]
                for gate in facts["gates"]
                if (gate["level"], gate["branch"]) == (level, branch)
            }
            if values:
                places = [layer + offset for layer in values]
                axes.bar(places, values.values(), width, color=BRANCH_COLOURS[branch], label=branch)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel(f"gate to level {level + 1}", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    largest = max(abs(gate["value"]) for gate in facts["gates"])
    if largest == 0:
        grid[0].set_ylim(-0.05, 1.05)
    handles = {label: bars for axes in grid for bars, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    named = [handles[branch] for branch in branches], branches
    figure.legend(*named, frameon=False, fontsize=8, ncols=len(branches), loc="outside upper right")
    closed = ": all closed" if largest == 0 else ""
    grid[0].set_title(f"{facts['model']}: gates, 0 closed, 1 fully nested{closed}", fontsize=9, loc="left")
    grid[-1].set_xlabel("layer", fontsize=8)
    grid[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def png(figure) -> bytes:
    stream = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # tokens in scripts that the font lacks are boxes
        figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
