"""
Where the time goes: Nexus beside Llama, by kind of operation, and what its arithmetic predicts for each kind.
`python -m benchmarks.speed_profile --task train --variant "order 2"`.

PyTorch's profiler records both models in turn. *products* are matrix products and *attention* is the fused kernel,
forward and backward: for them the prediction is Llama's time x the ratio of operations (costs.py). Everything else is
not in the bound: there the prediction is Llama's time. What remains is said to be *not predicted*. The profiler itself
costs time, so that the sum is a little more than a step takes.
"""

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from torch.profiler import ProfilerActivity, profile

from common.report import heading, save, table

from .speed import RESULTS
from .speed_cases import LLAMA, SHAPES, TOY, TRAINING, VARIANTS, Case, build
from .speed_measure import Runner, runner

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
TASKS = ("prefill", "decode", *TRAINING)


def kind(operation: str) -> str:
    if operation in PRODUCTS:
        return "products"
    return "attention" if "attention" in operation else operation.removeprefix("aten::").rstrip("_")


def seconds_by_kind(task: Runner) -> dict[str, float]:
    """Of one run: the time that each kind of operation spends in itself."""
    task.prepare()
    with profile(activities=[ProfilerActivity.CPU], acc_events=False) as record:
        task.run()
    spent: dict[str, float] = defaultdict(float)
    for event in record.key_averages():
        spent[kind(event.key) if event.key.startswith("aten::") else "outside operations"] += event.self_cpu_time_total
    return {name: microseconds / 1e6 for name, microseconds in spent.items()}


def predicted(case: Case, name: str, seconds: float, llama, nexus) -> float:
    """What `seconds` of Llama become if this kind costs what is counted."""
    if case.task == "decode" or name not in ("products", "attention"):
        return seconds
    parts = [case.flops(each, "cpu") for each in (llama, nexus)]
    before, after = (each["attention"] if name == "attention" else each["total"] - each["attention"] for each in parts)
    return seconds * after / before


def measure(case: Case, variant: str, repeats: int, shape) -> list[dict]:
    """Rows by kind, largest difference first: medians over the repeats, which are interleaved."""
    models = build(shape, {variant: VARIANTS[variant]}, getattr(torch, case.dtype), "cpu")
    runners = {name: runner(model, case) for name, model in models.items()}
    for each in runners.values():
        seconds_by_kind(each)  # warms up
    rounds = [{name: seconds_by_kind(each) for name, each in runners.items()} for _ in track(range(repeats))]
    rows = []
    for name in {name for each in rounds for spent in each.values() for name in spent}:
        llama, nexus = (statistics.median(each[key].get(name, 0.0) for each in rounds) for key in (LLAMA, variant))
        expected = predicted(case, name, llama, models[LLAMA].config, models[variant].config)
        rows.append({"kind": name, "llama": llama, "nexus": nexus, "predicted": expected, "excess": nexus - expected})
    return sorted(rows, key=lambda row: -abs(row["excess"]))


def show(rows: list[dict]) -> str:
    """The largest differences, in Markdown."""
    total = {key: sum(row[key] for row in rows) for key in ("llama", "nexus", "predicted", "excess")}
    cells = [
        [row["kind"], *(f"{1000 * row[key]:.1f}" for key in total), f"{row['excess'] / total['llama']:+.1%}"]
        for row in [*rows[:14], {"kind": "all"} | total]
    ]
    return table("| kind | Llama, ms | Nexus, ms | predicted, ms | not predicted, ms | of Llama's time |", cells)


def main(arguments: list[str] | None = None) -> dict:
    """Profiles one case, writes results/speed_profile_TASK.json, and returns the report."""
    parser = argparse.ArgumentParser("python -m benchmarks.speed_profile", description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--task", choices=TASKS, default="train")
    parser.add_argument("--variant", choices=[name for name in VARIANTS if VARIANTS[name]], default="order 2")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--toy", action="store_true", help="tiny models: tests the profile, measures nothing")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    case = Case(options.shape, options.task, 1, options.length, options.dtype)
    shape = TOY if options.toy else SHAPES[options.shape]
    rows = measure(case, options.variant, options.repeats, shape)
    report = heading("cpu") | {"case": case.label, "variant": options.variant, "repeats": options.repeats, "rows": rows}
    parts = ["speed_profile", options.task, options.variant] + ["bf16"] * (options.dtype == "bfloat16")
    name = "_".join(parts).replace(", ", "_").replace(" ", "_") + ".json"
    save(report, options.out / name)
    Console().print(Markdown(f"{options.variant} beside Llama, {case.label}\n\n{show(rows)}"))
    return report


if __name__ == "__main__":
    main()
