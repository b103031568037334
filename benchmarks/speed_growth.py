"""
How cost grows with length, order, number of nested layers and batch, beside the prediction of costs.py:
`python -m benchmarks.speed_growth` (some fifteen minutes on two CPU cores) writes results/speed_growth.json and .png.

Measured as in speed.py, on a stack of SmolLM2's layers: forward passes, and training steps of the same.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from common.report import heading, save

from .speed import RESULTS
from .speed_cases import LLAMA, SMOLLM2, TOY, Case, build
from .speed_measure import interleave, runner
from .speed_report import finish, measured_and_bound, row

LAYERS = 4
TITLES = {
    "length": "tokens",
    "length, window 64": "tokens, inner levels see 64",
    "order": "order of every layer",
    "nested layers": f"nested layers of {LAYERS}",
    "batch": "batch",
}
COLOURS = {"prefill": "#0072b2", "train": "#d55e00"}


def points(toy: bool) -> list[dict]:
    """The figures of all panels: `variable` is what grows, `value` how far it has."""
    common = {"nesting": {"attention_order": 2}, "batch": 1, "length": 256}
    chosen = [common | {"variable": "length", "value": n, "length": n} for n in (64, 128, 256, 512, 1024, 2048)]
    window = {"attention_order": 2, "inner_window": 64}
    lengths = (128, 256, 512, 1024, 2048, 4096)
    chosen += [common | {"variable": "length, window 64", "value": n, "length": n, "nesting": window} for n in lengths]
    chosen += [common | {"variable": "order", "value": n, "nesting": {"attention_order": n}} for n in (1, 2, 3, 4, 5)]
    chosen += [
        common | {"variable": "nested layers", "value": n, "nesting": {"attention_order": [2] * n}}
        for n in range(LAYERS + 1)
    ]
    chosen += [common | {"variable": "batch", "value": n, "batch": n, "length": 128} for n in (1, 2, 4, 8, 16)]
    if toy:
        chosen = [
            each | {"batch": min(each["batch"], 2), "length": 8} for each in chosen if each["value"] in (2, 64, 128)
        ]
    return chosen


def measure(point: dict, task: str, seconds: float, device: str, toy: bool) -> dict:
    """A row as in speed.py, with the point."""
    shape = replace(TOY, num_layers=LAYERS) if toy else SMOLLM2.stack(LAYERS)
    models = build(shape, {"nexus": point["nesting"]}, torch.float32, device)
    case = Case("smollm2-135m stack", task, point["batch"], point["length"])
    runners = {name: runner(model, case) for name, model in models.items()}
    timings = interleave(runners[LLAMA], {"nexus": runners["nexus"]}, device, seconds, min_rounds=5)
    return point | row(case, "nexus", models, timings["nexus"], {}, {})


def plot(report: dict, path: Path) -> None:
    figure = Figure(figsize=(17, 3.6), layout="constrained")
    for place, (variable, title) in enumerate(TITLES.items(), start=1):
        axis = figure.add_subplot(1, len(TITLES), place, xlabel=title)
        for task, colour in COLOURS.items():
            rows = [row for row in report["rows"] if (row["variable"], row["task"]) == (variable, task)]
            x = [row["value"] for row in rows]
            measured_and_bound(axis, x, rows, colour, task)
        if variable.startswith("length") or variable == "batch":
            axis.set_xscale("log", base=2)
        axis.set_xticks(x, x)
        axis.minorticks_off()
    figure.axes[0].legend(fontsize=8)
    title = f"Cost of nesting, order 2 unless said, {LAYERS} layers of SmolLM2's width, float32, eager"
    finish(figure, title, report, path)


def main(arguments: list[str] | None = None) -> dict:
    """Measures all points, writes the JSON file and the plot, and returns the report."""
    parser = argparse.ArgumentParser("python -m benchmarks.speed_growth", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=12.0, help="time per figure")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--toy", action="store_true", help="tiny models: tests the benchmark, measures nothing")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    console = Console(highlight=False)
    wanted = [(point, task) for point in points(options.toy) for task in COLOURS]
    console.print(f"{len(wanted)} figures, about {len(wanted) * (options.seconds + 2) / 60:.0f} min")
    report = heading(options.device) | {"seconds_per_figure": options.seconds, "rows": []}
    path = options.out / "speed_growth.json"
    for point, task in track(wanted, console=console):
        report["rows"].append(measure(point, task, options.seconds, options.device, options.toy))
        save(report, path)
    plot(report, path.with_suffix(".png"))
    console.print(f"written: {path}, {path.with_suffix('.png')}")
    return report


if __name__ == "__main__":
    main()
