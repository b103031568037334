"""The PNGs: the heads that refining changes most, and the gates."""

import warnings
from io import BytesIO
from typing import Any

import numpy as np

from .collect import LayerView, Maps
from .words import label

ROWS = 5  # heads in the overview
LABELLED = 48  # tokens, up to which every one is labelled
DPI = 110
TOP, MARGIN, GAP = 50, 90, 30  # pixels: above all maps; beside and below them, for labels; between them
BRANCH_COLOURS = {"query": "#1f5fbf", "key": "#c2570c", "value": "#2f7d4f"}


def figures(facts: dict[str, Any], views: list[LayerView]) -> dict[str, bytes]:
    """File name -> PNG. Raises `ImportError` without matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    with rc_context({"text.parse_math": False}):  # a dollar sign in a name or a token is a dollar sign
        files = {"overview.png": png(overview(Figure, facts, views))}
        if facts["gates"]:
            files["gates.png"] = png(drawn(gates(Figure, facts)))
    return files


def most_changed(views: list[LayerView], count: int) -> list[tuple[int, int]]:
    """(layer, head), the largest change first."""
    heads = [(-change, layer, head) for layer, view in enumerate(views) for head, change in enumerate(view.change)]
    return [(layer, head) for _, layer, head in sorted(heads)[:count]]


def overview(Figure, facts: dict[str, Any], views: list[LayerView]) -> np.ndarray:
    """
    One row per head: its maps side by side, and what refining adds to the first.

    Matplotlib draws the text only. With axes, ticks and its layout the same picture took eight times as long.
    """
    rows = [maps_of_head(views[layer], layer, head) for layer, head in most_changed(views, ROWS)]
    columns = max(len(row) for row in rows)
    tokens = [label(token) for token in facts["tokens"]]
    cell = -(-min(max(264, 13 * len(tokens)), 550) // len(tokens))  # pixels of a token
    side = cell * len(tokens)
    tops = [TOP + row * (side + GAP) for row in range(len(rows))]
    lefts = [MARGIN + column * (side + GAP) for column in range(columns)]
    width, height = lefts[-1] + side + GAP, tops[-1] + side + MARGIN
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def write(x: float, y: float, text: str, size: float, **style) -> None:
        """`x` and `y` in pixels from the top left."""
        figure.text(x / width, 1 - y / height, text, size=size, **style)

    what = "the heads that change most. Rows ask, columns are looked at; coloured by square root"
    write(MARGIN, 20, f"{facts['model']}: {what}", 9)
    for top, row in zip(tops, rows, strict=True):
        for left, (title, _) in zip(lefts, row, strict=False):
            write(left, top - 6, title, 8)
    step = -(-len(tokens) // LABELLED)
    size = min(7.0, 0.8 * step * cell * 72 / DPI)
    for number in range(0, len(tokens), step):
        middle = (number + 0.5) * cell
        for top in tops:
            write(MARGIN - 4, top + middle, tokens[number], size, ha="right", va="center_baseline")
        for left in lefts:
            write(left + middle, height - MARGIN + 4, tokens[number], size, ha="center", va="top", rotation=90)
    image = drawn(figure)
    for top, row in zip(tops, rows, strict=True):
        for left, (_, pixels) in zip(lefts, row, strict=False):
            image[top - 1 : top + side + 1, left - 1 : left + side + 1] = 187  # its frame, grey
            image[top : top + side, left : left + side] = pixels.repeat(cell, 0).repeat(cell, 1)
    return image


def maps_of_head(view: LayerView, layer: int, head: int) -> list[tuple[str, np.ndarray]]:
    """Titles and pixels, (T, T, 3): the levels, and at order 2 and beyond the last of them minus the first."""
    maps = [each.weights(head, len(view.change)) for each in view.maps]
    found = [
        (f"layer {layer}, head {head}: {name_of(each, view.order)}", coloured(weights, "Blues", 0.0, each.causal))
        for each, weights in zip(view.maps, maps, strict=True)
    ]
    if view.order > 1:
        first = "level 1" if view.maps[0].level == 1 else "unrefined"
        title = f"level {view.order} minus {first} ({view.change[head]:.2f} changed)"
        found.append((title, coloured(maps[-1] - maps[0], "PuOr_r", -1.0, view.maps[0].causal)))
    return found


def name_of(maps: Maps, order: int) -> str:
    if order == 1:
        return "order 1"
    if maps.level == 0:
        return "nothing refined"
    return f"level {maps.level} of {order}" + (f", {maps.branch}" if maps.branch else "")


def coloured(weights: np.ndarray, colours: str, lowest: float, causal: bool) -> np.ndarray:
    """Weights from `lowest` to 1 by the square root of their size, else small ones could not be seen."""
    from matplotlib import colormaps

    roots = np.sign(weights) * np.abs(weights) ** 0.5
    pixels = colormaps[colours]((roots - lowest) / (1 - lowest), bytes=True)[..., :3]
    if causal:
        pixels[np.triu_indices(len(weights), 1)] = 255  # the future
    return pixels


def gates(Figure, facts: dict[str, Any]):
    """Bars by layer, one set for every level that is refined."""
    from matplotlib.patches import Patch

    levels = sorted({gate["level"] for gate in facts["gates"]})
    branches = [branch for branch in BRANCH_COLOURS if branch in {gate["branch"] for gate in facts["gates"]}]
    width = 0.8 / len(branches)
    layers = sorted({gate["layer"] for gate in facts["gates"]})
    figsize = min(max(4.0, 0.33 * len(layers) + 1.5), 24.0), 2.6 * len(levels)
    figure = Figure(figsize=figsize, dpi=DPI, layout="constrained")
    grid = figure.subplots(len(levels), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axes, level in zip(grid, levels, strict=True):
        for number, branch in enumerate(branches):
            offset = (number - (len(branches) - 1) / 2) * width
            bars = [gate for gate in facts["gates"] if (gate["level"], gate["branch"]) == (level, branch)]
            places, values = [gate["layer"] + offset for gate in bars], [gate["value"] for gate in bars]
            axes.bar(places, values, width, color=BRANCH_COLOURS[branch])
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel(f"gate to level {level + 1}", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    largest = max(abs(gate["value"]) for gate in facts["gates"])
    if largest == 0:
        grid[0].set_ylim(-0.05, 1.05)
    patches = [Patch(color=BRANCH_COLOURS[branch], label=branch) for branch in branches]
    figure.legend(handles=patches, frameon=False, fontsize=8, ncols=len(branches), loc="outside upper right")
    closed = ": all closed" if largest == 0 else ""
    grid[0].set_title(f"{facts['model']}: gates, 0 closed, 1 fully nested{closed}", fontsize=9, loc="left")
    grid[-1].set_xlabel("layer", fontsize=8)
    grid[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def drawn(figure) -> np.ndarray:
    """Its pixels, (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # tokens in scripts that the font lacks are boxes
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def png(image: np.ndarray) -> bytes:
    from PIL import Image  # which matplotlib needs

    stream = BytesIO()
    Image.fromarray(image).save(stream, "png", dpi=(DPI, DPI))
    return stream.getvalue()
