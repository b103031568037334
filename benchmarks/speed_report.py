"""What came out: rows of figures, the targets they are judged by, a table, a JSON file and a plot."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from common import costs
from common.report import table

from .speed_cases import CLOSED, CONTROL, LLAMA, SHAPES, WINDOW, Case
from .speed_measure import DECODED, Timing, quartiles

JUDGED = next(iter(SHAPES))
# What must hold for the whole SmolLM2 shape, batch 1, eager: name, variant, task, length, dtype, figure, limit.
# The length is that of the targets preset; another one stands in where it was not measured.
TARGETS = [
    ("order 2, prefill", "order 2", "prefill", 512, "float32", "ratio_to_bound", 1.03),
    ("order 2, training", "order 2", "train", 512, "float32", "ratio_to_bound", 1.03),
    ("order 2, training, checkpointed", "order 2", "train checkpointed", 512, "float32", "ratio_to_bound", 1.03),
    ("order 2, decoding", "order 2", "decode", 1024, "float32", "ratio_to_bound", 1.10),
    ("order 1, prefill", "order 1", "prefill", 512, "float32", "ratio", 1.01),
    ("order 1, training", "order 1", "train", 512, "float32", "ratio", 1.01),
    ("order 1, decoding", "order 1", "decode", 1024, "float32", "ratio", 1.01),
    ("KV cache, order 2", "order 2", "decode", 1024, "float32", "cache_ratio", 1.5),
    ("KV cache, order 2, queries only", "order 2, queries only", "decode", 1024, "float32", "cache_ratio", 1.0),
    ("training memory, checkpointed", "order 2", "train checkpointed", 512, "float32", "peak_ratio", 1.05),
    ("first layer only, prefill", "first layer only", "prefill", 512, "float32", "ratio", 1.01),
    ("first layer only, training", "first layer only", "train", 512, "float32", "ratio", 1.01),
    ("window 64, prefill", WINDOW, "prefill", 2048, "float32", "ratio", 1.17),
    ("window 64, prefill", WINDOW, "prefill", 4096, "float32", "ratio", 1.15),
    ("window 64, training", WINDOW, "train", 2048, "float32", "ratio", 1.06),
    ("window 64, decoding", WINDOW, "decode", 4096, "float32", "ratio", 1.10),
    ("window 64, KV cache", WINDOW, "decode", 4096, "float32", "cache_ratio", 1.03),
    ("window 64, prefill, bfloat16", WINDOW, "prefill", 2048, "bfloat16", "ratio", 1.20),
    ("closed gates skipped, prefill", CLOSED, "prefill", 512, "float32", "ratio", 1.00),
    ("closed gates skipped, decoding", CLOSED, "decode", 1024, "float32", "ratio", 1.00),
]
COLOURS = {
    CONTROL: "#999999",
    "order 1": "#0072b2",
    "order 2": "#d55e00",
    "order 2, gates": "#cc79a7",
    "order 2, queries only": "#e69f00",
    "order 2, W_O": "#8c564b",
    "separate": "#7f3c8d",
    "self": "#b3b300",
    "order 3": "#009e73",
    "first layer only": "#56b4e9",
    WINDOW: "#17becf",
    CLOSED: "#666600",
}


def bound(config, case: Case, itemsize: int, attention: str) -> float:
    """Operations, or bytes read where decoding. Only ratios of two such numbers mean anything."""
    if case.task == "decode":
        attended = case.length + (DECODED + 1) / 2  # the mean over the run
        if case.compiled:
            attended = case.length + DECODED  # a static cache is attended to in full
        return costs.bytes_read(config, case.batch, attended, itemsize)["total"]
    return case.flops(config, attention)["total"]


def row(case: Case, variant: str, models: dict, timing: Timing, peaks: dict[str, int], caches: dict[str, int]) -> dict:
    """All figures of one variant in one case. Seconds are per run: a pass, a training step or a decoded token."""
    llama, model = models[LLAMA], models[variant]
    itemsize = model.dtype.itemsize
    tokens = DECODED if case.task == "decode" else 1
    low, ratio, high = quartiles(timing.ratios)
    kernel = "cpu" if model.device.type == "cpu" else "causal"
    limit, causal = (
        bound(model.config, case, itemsize, attention) / bound(llama.config, case, itemsize, attention)
        for attention in (kernel, "causal")
    )
    seconds = quartiles(timing.seconds)[1] / tokens
    figures = {
        "shape": case.shape,
        "layers": getattr(model.config, "num_layers", llama.config.num_hidden_layers),
        "task": case.task,
        "variant": variant,
        "batch": case.batch,
        "length": case.length,
        "dtype": case.dtype,
        "compiled": case.compiled,
        "device": model.device.type,
        "ratios": [round(each, 4) for each in timing.ratios],
        "seconds": seconds,
        "llama_seconds": quartiles(timing.llama_seconds)[1] / tokens,
        "tokens_per_second": case.batch * (1 if case.task == "decode" else case.length) / seconds,
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "bound": limit,
        "causal_bound": causal,
        "bound_kind": "bytes read" if case.task == "decode" else "operations",
        "ratio_to_bound": ratio / limit,
    }
    if peaks:
        for figure, name in (("peak_bytes", variant), ("llama_peak_bytes", LLAMA)):
            figures[figure] = peaks[name] + sum(parameter.nbytes for parameter in models[name].parameters())
        figures["peak_ratio"] = figures["peak_bytes"] / figures["llama_peak_bytes"]
    if caches:
        figures["cache_bytes"] = caches[variant]
        figures["cache_ratio"] = caches[variant] / caches[LLAMA]
        kept = [costs.cache_bytes(each.config, batch=1, length=case.length, itemsize=1) for each in (model, llama)]
        figures["cache_bound"] = kept[0] / kept[1]
    return figures


def pool(parts: list[dict]) -> dict:
    """One report of several that measured the same or other cases: medians and quartiles over the rounds of all."""
    by_case: dict[tuple, list[dict]] = {}
    for row in (row for part in parts for row in part["rows"]):
        case = tuple(row[key] for key in ("shape", "task", "batch", "length", "dtype", "compiled", "variant"))
        by_case.setdefault(case, []).append(row)
    rows = []
    for same in by_case.values():
        row = dict(same[0])
        row["ratios"] = [ratio for each in same for ratio in each["ratios"]]
        low, ratio, high = quartiles(row["ratios"])
        row |= {"ratio": ratio, "ratio_quartiles": [low, high], "ratio_to_bound": ratio / row["bound"]}
        for figure in ("seconds", "llama_seconds", "tokens_per_second"):
            row[figure] = quartiles(each[figure] for each in same)[1]
        rows.append(row)
    report = parts[0] | {"processes": min(map(len, by_case.values())), "rows": rows}
    return report | {"targets": judge(rows)} if any("targets" in part for part in parts) else report


def judge(rows: list[dict]) -> list[dict]:
    """Each target with the measured figure and "reached", "within the spread", "missed" or "not measured"."""
    verdicts = []
    for name, variant, task, length, dtype, figure, limit in TARGETS:
        fitting = [
            row
            for row in rows
            if (row["shape"], row["variant"], row["task"], row["batch"], row["dtype"], row["compiled"])
            == (JUDGED, variant, task, 1, dtype, False)
            and figure in row
        ]
        verdict = {"target": name, "figure": figure, "limit": limit, "verdict": "not measured"}
        if fitting:
            best = min(fitting, key=lambda row: abs(math.log(row["length"] / length)))
            measured = best[figure]
            # the spread belongs to ratios of times; bytes have none
            low = best["ratio_quartiles"][0] / (best["bound"] if figure == "ratio_to_bound" else 1)
            near = figure in ("ratio", "ratio_to_bound") and low <= limit
            verdict |= {key: best[key] for key in ("ratio", "ratio_quartiles", "bound", "causal_bound", "length")}
            verdict["measured"] = measured
            verdict["verdict"] = "reached" if measured <= limit else "within the spread" if near else "missed"
        verdicts.append(verdict)
    return verdicts


def show(report: dict, console: Console) -> None:
    """Prints a table per case, then the targets, if they were measured."""
    cases: dict[str, list[dict]] = {}
    for row in report["rows"]:
        compiled = "compiled" if row["compiled"] else "eager"
        label = f"{row['shape']} ({row['layers']} layers), {row['task']}, batch {row['batch']} x {row['length']} tokens"
        cases.setdefault(f"{label}, {row['device']}, {row['dtype']}, {compiled}", []).append(row)
    for label, rows in cases.items():
        console.print(case_table(label, rows))
    if "targets" in report:
        console.print("Targets (whole SmolLM2 shape, batch 1, float32, eager)", Markdown(markdown(report)))


def markdown(report: dict) -> str:
    """The targets as docs/speed.md shows them, or all cases where no target was measured."""
    return (targets_markdown if "targets" in report else cases_markdown)(report) + "\n"


def cases_markdown(report: dict) -> str:
    """A line per case; of each variant: ratio / bound = how much more than its bound it takes."""
    cases: dict[tuple[str, ...], dict[str, str]] = {}
    for row in report["rows"]:
        how = f"{row['dtype']}, {'compiled' if row['compiled'] else 'eager'}"
        case = (row["shape"], row["task"], f"{row['batch']} x {row['length']}", how)
        cell = f"{row['ratio']:.2f} / {row['bound']:.2f} = {row['ratio_to_bound']:.2f}"
        cases.setdefault(case, {})[row["variant"]] = cell
    variants = [name for name in COLOURS if any(name in cells for cells in cases.values())]
    rows = [[*case, *(cells.get(name, "") for name in variants)] for case, cells in cases.items()]
    return table(f"| shape | task | batch x tokens | | {' | '.join(variants)} |", rows)


def targets_markdown(report: dict) -> str:
    rows = []
    for target in report["targets"]:
        bounded, timed = target["figure"] == "ratio_to_bound", target["figure"] in ("ratio", "ratio_to_bound")
        aim, measured = f"≤ {target['limit']:.2f}", ""
        if "measured" in target:
            times = f" x {target['bound']:.3f}" if bounded else ""
            aim += times
            measured = f"{target['measured']:.3f}{times}"
            if timed:
                low, high = (limit / (target["bound"] if bounded else 1) for limit in target["ratio_quartiles"])
                measured += f" ({low:.3f} to {high:.3f})"
        rows.append([target["target"], target.get("length", ""), aim, measured, target["verdict"]])
    return table("| beside Llama of the same shape | tokens | aim | measured (quartiles) | |", rows)


def case_table(label: str, rows: list[dict]) -> Table:
    """`/bound` and `/causal`: the ratio over its bound, of attention as computed here and of causal attention."""
    decoding = rows[0]["task"] == "decode"
    table = Table(title=label, title_justify="left", box=box.SIMPLE, pad_edge=False, padding=0)
    table.add_column("variant", no_wrap=True)
    columns = ("tokens/s" if decoding else "ms", "ratio", "quartiles", "bound", "/bound", "/causal")
    for column in (*columns, "cache" if decoding else "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        low, high = row["ratio_quartiles"]
        space = row.get("cache_ratio" if decoding else "peak_ratio")
        table.add_row(
            row["variant"],
            f"{row['tokens_per_second'] if decoding else 1000 * row['seconds']:.1f}",
            f"{row['ratio']:.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{row['bound']:.3f}",
            f"{row['ratio_to_bound']:.3f}",
            f"{row['ratio'] / row['causal_bound']:.3f}",
            "" if space is None else f"{space:.3f}",
        )
    return table


def plot(report: dict, path: Path) -> None:
    """
    Ratio against length, one panel per shape and task: measured medians with their quartiles, dashed the bounds. Batch
    1, eager, float32; what else was measured is in the JSON file.
    """
    rows = [row for row in report["rows"] if (row["batch"], row["compiled"], row["dtype"]) == (1, False, "float32")]
    if not rows:
        return
    panels = list(dict.fromkeys((row["shape"], row["task"]) for row in rows))
    columns = min(4, len(panels))  # the wide set has four tasks for each shape
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(1 + 3.6 * columns, 1 + 2.9 * lines), layout="constrained")
    for place, (shape, task) in enumerate(panels, start=1):
        axis = figure.add_subplot(lines, columns, place, title=f"{shape}\n{task}", xlabel="tokens")
        panel(axis, [row for row in rows if (row["shape"], row["task"]) == (shape, task)])
    handles = [Line2D([], [], marker="o", linestyle="", color=colour, label=name) for name, colour in COLOURS.items()]
    handles += [Line2D([], [], linestyle="--", marker="_", color="black", label="bound")]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    finish(figure, "Nexus beside Llama, float32, batch 1, not compiled", report, path)


def panel(axis: Axes, rows: list[dict]) -> None:
    lengths = sorted({row["length"] for row in rows})
    variants = [name for name in COLOURS if any(row["variant"] == name for row in rows)]
    for place, variant in enumerate(variants):
        points = sorted((row for row in rows if row["variant"] == variant), key=lambda row: row["length"])
        # side by side: many ratios are nearly equal
        x = [lengths.index(row["length"]) + 0.09 * (place - (len(variants) - 1) / 2) for row in points]
        measured_and_bound(axis, x, points, COLOURS[variant])
    axis.set_xticks(range(len(lengths)), lengths)


def measured_and_bound(axis: Axes, x: list[float], rows: list[dict], colour: str, label: str = "") -> None:
    """Dots with their quartiles; dashed what the bound predicts."""
    ratios = [row["ratio"] for row in rows]
    low, high = ([abs(row["ratio"] - row["ratio_quartiles"][i]) for row in rows] for i in (0, 1))
    axis.errorbar(
        x, ratios, [low, high], fmt="o", markersize=3.5, linewidth=1, color=colour, label=f"{label}, measured"
    )
    bounds = [row["bound"] for row in rows]
    axis.plot(x, bounds, "--", marker="_", markersize=9, linewidth=0.8, color=colour, label=f"{label}, predicted")
    axis.grid(axis="y", linewidth=0.3)


def finish(figure: Figure, title: str, report: dict, path: Path) -> None:
    device = report["device"]
    figure.axes[0].set_ylabel("time / Llama's")
    figure.suptitle(f"{title}; {device['name']}, threads: {device['threads']}, {report['date'][:10]}", fontsize=10)
    figure.savefig(path, dpi=130)
