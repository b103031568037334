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
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read at import: the profiler announces every start and stop

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from common import costs
from common.machine import device_name, heading

from . import speed_report
from .speed_cases import LLAMA, SHAPES, TOY, VARIANTS, Case, build, cases
from .speed_measure import DECODED, TRAINING, held_by, interleave, peak_bytes, runner

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
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases whose label contains this")
    parser.add_argument("--seconds", type=float, help="time per case, in place of the preset's")
    parser.add_argument(
        "--processes", type=int, help="fresh ones among which the judged cases are divided (targets: 3, others: 1)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--toy", action="store_true", help="tiny models: tests the benchmark, measures nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    """Measures the cases of each chosen preset, writes speed_PRESET.json, .png and .md, and returns the reports."""
    options = parse(arguments)
    reports = {}
    for preset in FULL if options.preset == "full" else (options.preset,):
        processes = options.processes or PROCESSES[preset]
        report = measure_preset(argparse.Namespace(**vars(options) | {"preset": preset, "processes": processes}))
        reports |= {preset: report} if report else {}
    return reports


def measure_preset(options: argparse.Namespace) -> dict:
    console = Console(highlight=False)
    chosen = chosen_cases(options)
    if options.list or not chosen:
        console.print("\n".join(case.label for case in chosen) or f"no case has {options.only!r} in its label")
        return {}
    # a part never replaces the whole
    path = options.out / f"speed_{options.preset}{'_part' if options.only else ''}.json"
    if options.processes == 1:
        report = run(options, chosen, path=path)
    else:
        report = run_in_processes(options, chosen, path)
    speed_report.show(report, console)
    speed_report.plot(report, path.with_suffix(".png"))
    path.with_suffix(".md").write_text(speed_report.markdown(report))
    console.print(f"written: {path}, with .png and .md beside it")
    return report


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    chosen = [case for case in cases(options.preset) if options.only in case.label]
    return [replace(case, length=min(case.length, 8)) for case in chosen] if options.toy else chosen


def run_in_processes(options: argparse.Namespace, chosen: list[Case], path: Path) -> dict:
    """The cases that the targets are judged by in several processes, the others in one more. Saves after each."""
    judged = [case for case in chosen if case.judged]
    others = [case for case in chosen if not case.judged]
    reports, report = [], {"rows": []}
    alone = {"max_workers": 1, "max_tasks_per_child": 1, "mp_context": get_context("spawn")}
    with ProcessPoolExecutor(**alone) as processes:
        for _ in range(options.processes if judged else 0):
            reports.append(processes.submit(run, options, judged, options.processes).result())
            report = speed_report.pool(reports)
            speed_report.save(report, path)
        if others:
            rest = processes.submit(run, options, others).result()
            report = rest | {"processes": len(reports), "rows": report["rows"] + rest["rows"]}
            if judged:
                report["targets"] = speed_report.judge(report["rows"])
            speed_report.save(report, path)
    return report


def run(options: argparse.Namespace, chosen: list[Case], processes: int = 1, path: Path | None = None) -> dict:
    """
    Measures the cases in this process, one of `processes` that divide the time. With a path, saves after every case: an
    interrupted run keeps what it has.
    """
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    console = Console(highlight=False)
    seconds = (options.seconds or SECONDS[options.preset]) / processes
    speeds = (1e12, 1e12) if options.toy else device_speeds(options.device)
    budget = sum(estimate(case, seconds, speeds, processes) for case in chosen)
    console.print(
        f"{len(chosen)} cases on {device_name(options.device)}, threads: {options.threads}, about {budget / 60:.0f} min"
    )

    report = heading(options.device) | {"preset": options.preset, "seconds_per_case": seconds, "rows": []}
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console) as progress:
        bar, done, models, held = progress.add_task("", total=budget), 0.0, {}, None
        for case in chosen:
            progress.update(bar, description=case.label)
            key = (case.shape, case.dtype, case.variants)
            if key != held:
                models.clear()  # before the next ones take memory
                shape = TOY if options.toy else SHAPES[case.shape]
                nestings = {name: VARIANTS[name] for name in case.variants}
                models.update(build(shape, nestings, getattr(torch, case.dtype), options.device))
                held = key
            share = estimate(case, seconds, speeds, processes)

            def advance(part: float, done: float = done, share: float = share) -> None:
                progress.update(bar, completed=done + part * share)

            rounds = math.ceil(case.rounds / processes)
            report["rows"] += measure(case, models, options.device, seconds * case.weight, advance, rounds)
            done += share
            if any(case.judged for case in chosen):
                report["targets"] = speed_report.judge(report["rows"])
            if path:
                speed_report.save(report, path)
    return report


def measure(case: Case, models: dict, device: str, budget: float, advance, min_rounds: int = 3) -> list[dict]:
    """One case: the rows of its variants. The budget is in seconds."""
    torch.manual_seed(0)
    torch.compiler.reset()
    runners = {name: runner(model, case) for name, model in models.items()}
    rivals = {name: each for name, each in runners.items() if name != LLAMA}
    timings = interleave(runners[LLAMA], rivals, device, budget, min_rounds, after_round=advance)
    peaks = {} if case.compiled else {name: peak_bytes(each, device) for name, each in runners.items()}
    caches = {name: held_by(each.cache) for name, each in runners.items() if each.cache is not None}
    for model in models.values():
        model.zero_grad(set_to_none=True)
    return [speed_report.row(case, name, models, timings[name], peaks, caches) for name in rivals]


def estimate(case: Case, seconds: float, speeds: tuple[float, float], processes: int) -> float:
    """Seconds that the case takes in one of the processes: its budget, or what warm-up and the fewest rounds need."""
    rounds = math.ceil(case.rounds / processes)
    config = build_config(case)
    itemsize = getattr(torch, case.dtype).itemsize
    operations, bandwidth = speeds
    if case.task == "decode":
        run = DECODED * costs.bytes_read(config, case.batch, case.length, itemsize)["total"] / bandwidth
        setup = costs.flops(config, case.batch, case.length, logits=1)["total"] / operations
    else:
        training = case.task in TRAINING
        run = costs.flops(config, case.batch, case.length, logits=None if training else 1, training=training)["total"]
        run, setup = run / operations, 0.0
    models = len(case.variants)
    setup = (setup + run * 2) * (models + 1) + (30.0 * models if case.compiled else 0.0)
    return setup + max(seconds * case.weight, rounds * (2 * models + 1) * run)


def build_config(case: Case) -> transformers.LlamaConfig:
    shape = SHAPES[case.shape]
    return transformers.LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        vocab_size=shape.vocab_size,
    )


def device_speeds(device: str) -> tuple[float, float]:
    """Operations and bytes per second of a float32 product and of reading weights, for the estimate only."""
    square, row = torch.randn(1024, 1024, device=device), torch.randn(1, 1024, device=device)
    wide = torch.randn(32768, 1024, device=device)

    def best(run) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        return min(times)

    operations = 0.6 * 2 * 1024**3 / best(lambda: square @ square)  # what a whole model gets of it
    bandwidth = 0.6 * wide.nbytes / best(lambda: row @ wide.T)
    return operations, bandwidth


if __name__ == "__main__":
    main()
