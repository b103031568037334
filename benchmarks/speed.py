"""
How fast Nexus is beside Llama, and beside what its arithmetic allows: `python -m benchmarks.speed`.

Every variant of Nexus runs the same task as transformers' `LlamaForCausalLM` with the same shape and weights, in the
same process and in turn with it. A ratio is one run of Nexus over the mean of the two runs of Llama around it; reported
are the median of all rounds and the quartiles. Beside it stands its bound from common/costs.py: the ratio of
operations, or of bytes read where decoding. `llama again` is a second Llama measured in the same way: it shows how far
noise goes.
"""

import argparse
import math
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read at import: the profiler announces every start and stop

import torch
import transformers
from rich.console import Console
from rich.progress import track

from common.report import heading, save

from . import speed_report
from .speed_cases import LLAMA, SHAPES, TOY, VARIANTS, Case, build, cases
from .speed_measure import held_by, interleave, peak_bytes, runner

RESULTS = Path(__file__).parent / "results"
SECONDS = {"quick": 8.0, "targets": 8.0, "wide": 2.0}  # per case of weight 1, as far as three rounds allow
# Where memory happens to lie makes a whole process faster or slower at a task: one of them does not tell.
PROCESSES = {"quick": 1, "targets": 3, "wide": 1}
FULL = ("targets", "wide")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__.split("\n\n")[0].strip())
    parser.add_argument(
        "--preset",
        choices=(*SECONDS, "full"),
        default="full",
        help="quick: minutes; targets: the judged cases; wide: many others; full: targets, then wide",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases whose label contains this")
    parser.add_argument("--seconds", type=float, help="time per case, in place of the preset's")
    parser.add_argument("--processes", type=int, help="fresh ones that divide the time (targets: 3, others: 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--toy", action="store_true", help="tiny models: tests the benchmark, measures nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    """Measures the cases of each chosen preset, writes speed_PRESET.json, .png and .md, and returns the reports."""
    options = parse(arguments)
    reports = {}
    for preset in FULL if options.preset == "full" else (options.preset,):
        chosen = [case for case in cases(preset) if options.only in case.label]
        if options.list or not chosen:
            print("\n".join(case.label for case in chosen) or f"no case has {options.only!r} in its label")
        else:
            reports[preset] = measure_preset(preset, chosen, options)
    return reports


def measure_preset(preset: str, chosen: list[Case], options: argparse.Namespace) -> dict:
    if options.toy:
        chosen = [replace(case, length=min(case.length, 8)) for case in chosen]
    # a part never replaces the whole
    path = options.out / f"speed_{preset}{'_part' if options.only else ''}.json"
    processes = options.processes or PROCESSES[preset]
    if processes == 1:
        report = run(preset, chosen, options, path=path)
    else:
        parts = []
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
            for process in range(processes):
                for _, group in groupby(chosen, sharing):  # whatever is interrupted keeps what it has
                    task = fresh.submit(run, preset, list(group), options, processes, with_memory=process == 0)
                    parts.append(task.result())
                    report = speed_report.pool(parts)
                    save(report, path)
    speed_report.show(report, Console(highlight=False))
    speed_report.plot(report, path.with_suffix(".png"))
    path.with_suffix(".md").write_text(speed_report.markdown(report))
    print(f"written: {path}, with .png and .md beside it")
    return report


def sharing(case: Case) -> tuple:
    """What decides which models a case needs."""
    return case.shape, case.dtype, case.variants


def run(
    preset: str,
    chosen: list[Case],
    options: argparse.Namespace,
    processes: int = 1,
    path: Path | None = None,
    with_memory: bool = True,
) -> dict:
    """
    Measures the cases in this process, one of `processes` that divide the time. With a path, saves after every case: an
    interrupted run keeps what it has.
    """
    transformers.logging.set_verbosity_error()
    console = Console(highlight=False)
    seconds = (options.seconds or SECONDS[preset]) / processes
    report = heading(options.device) | {"preset": preset, "seconds_per_case": seconds, "rows": []}
    least = sum(seconds * case.weight for case in chosen)
    device = report["device"]
    console.print(
        f"{len(chosen)} cases on {device['name']}, threads: {device['threads']}, about {least / 60:.0f} min or more"
    )
    models, held = {}, None
    for case in track(chosen, description="", console=console):
        console.print(case.label)
        if sharing(case) != held:
            models.clear()  # before the next ones take memory
            shape = TOY if options.toy else SHAPES[case.shape]
            nestings = {name: VARIANTS[name] for name in case.variants}
            models = build(shape, nestings, getattr(torch, case.dtype), options.device)
            held = sharing(case)
        rounds = math.ceil(case.rounds / processes)
        report["rows"] += measure(case, models, options.device, seconds * case.weight, rounds, with_memory)
        if any(case.judged for case in chosen):
            report["targets"] = speed_report.judge(report["rows"])
        if path:
            save(report, path)
    return report


def measure(
    case: Case, models: dict, device: str, budget: float, min_rounds: int = 3, with_memory: bool = True
) -> list[dict]:
    """One case: the rows of its variants. The budget is in seconds."""
    torch.manual_seed(0)
    torch.compiler.reset()
    runners = {name: runner(model, case) for name, model in models.items()}
    rivals = {name: each for name, each in runners.items() if name != LLAMA}
    timings = interleave(runners[LLAMA], rivals, device, budget, min_rounds)
    with_memory = with_memory and not case.compiled  # the same in every process
    peaks = {name: peak_bytes(each, device) for name, each in runners.items()} if with_memory else {}
    caches = {name: held_by(each.cache) for name, each in runners.items() if each.cache is not None}
    for model in models.values():
        model.zero_grad(set_to_none=True)
    return [speed_report.row(case, name, models, timings[name], peaks, caches) for name in rivals]


if __name__ == "__main__":
    main()
