"""
The runs of an experiment: each is made once, kept in a JSON file as soon as it is done, and spread over the CPU cores.

An experiment says what it wants as a list of settings (JSON objects that determine a run, its seed included) and gets a
record of each: those that the file has already are not made again, so an interrupted experiment continues where it was.
"""

import argparse
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Hashable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime, timezone
from functools import cache, reduce
from multiprocessing import get_context, parent_process
from multiprocessing.queues import SimpleQueue
from operator import getitem
from pathlib import Path
from threading import Thread

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.report import heading, write

ROOT = Path(__file__).parent
RESULTS, QUICK = ROOT / "results", ROOT.parent / ".cache" / "evidence-quick"
Settings = dict
Advance = Callable[[float], None]  # takes the share of a run that is done


def parse(description: str, names: list[str]) -> argparse.Namespace:
    """The command line: which of the experiments `names` to run, and how."""
    parser = argparse.ArgumentParser(description=description.strip(), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; by default all")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to .cache/evidence-quick")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--out", type=Path, help="folder of the results")
    options = parser.parse_args()
    options.out = options.out or (QUICK if options.quick else RESULTS)
    for name in options.names:
        if name not in names:
            parser.error(f"no experiment {name!r}; there are {', '.join(names)}")
    return options


class Experiment:
    """
    One experiment's file of runs.

    Args:
        name: Of the results, NAME.json and NAME.png.
        budget: CPU hours that all runs together are meant to take; stated in the file beside those they took.
        options: From `parse`.
        one_run: `one_run(settings, advance)` makes a run, in a process of its own with one thread, and returns its
            result.
        summarise: Makes the summary, of the records of each stage, whenever a stage ends or is stopped.
    """

    def __init__(
        self,
        name: str,
        budget: float,
        options: argparse.Namespace,
        one_run: Callable[[Settings, Advance], dict],
        summarise: Callable[[dict[str, list[dict]]], dict] | None = None,
    ):
        self.name, self.budget, self.options, self.one_run, self.summarise = name, budget, options, one_run, summarise
        self.path = options.out / f"{name}.json"
        self.summary, self.finished, self.heading = {}, False, {}
        self.records: list[dict] = []
        self.stages: dict[str, list[dict]] = {}
        self.wanted: list[Settings] = []
        self.console = Console(highlight=False)
        if self.path.exists():
            try:
                report = json.loads(self.path.read_text())
                self.records, self.summary = report["runs"], report["summary"]
                self.heading = {key: report[key] for key in ("date", "device", "versions")}
            except (ValueError, KeyError):
                sys.exit(f"{self.path} is not a results file of an experiment; move it away and run again.")

    def run(self, stage: str, wanted: list[Settings]) -> list[dict]:
        """The records of the wanted runs, in their order: {"settings", "result", "cpu_seconds", "date"}."""
        self.wanted += wanted
        missing = [settings for settings in wanted if self.find(settings) is None]
        self.console.print(f"[bold]{self.name}[/]: {stage}, {len(wanted)} runs, {len(missing)} to make")
        try:
            if missing:
                self.make(stage, missing)
        finally:
            self.stages[stage] = [record for settings in wanted if (record := self.find(settings))]
            if self.summarise:
                self.summary = self.summarise(self.stages)
                self.save()
        return self.stages[stage]

    def find(self, settings: Settings) -> dict | None:
        return next((record for record in self.records if record["settings"] == settings), None)

    def make(self, stage: str, missing: list[Settings]) -> None:
        self.heading = heading("cpu")
        self.heading["device"]["threads"] = 1  # of each worker
        workers, queue = pool(self.options.workers)
        shares, done = {}, 0
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, MofNCompleteColumn(), console=self.console) as progress:
            bar = progress.add_task(stage, total=len(missing))
            pending = {workers.submit(make_one, self.one_run, each, i): each for i, each in enumerate(missing)}
            try:
                while pending:
                    finished, _ = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                    for future in sorted(finished, key=lambda each: each.exception() is not None):  # keep, then fail
                        self.records.append(future.result() | {"settings": pending.pop(future)})
                        done += 1
                        self.save()
                    while not queue.empty():
                        number, share = queue.get()
                        shares[number] = share
                    progress.update(bar, completed=max(done, sum(shares.values())))
            except (Exception, KeyboardInterrupt) as error:
                kept = f"{done} of {len(missing)} runs are kept in {self.path}; run the same command to continue"
                stopped = isinstance(error, KeyboardInterrupt | BrokenProcessPool)
                stop(workers)
                if stopped:
                    sys.exit(f"{self.name} was interrupted; {kept}.")
                self.console.print(f"{self.name}: a run failed; {kept}.")
                raise

    def save(self) -> None:
        """Writes the file anew. Runs that the experiment no longer wants stay until `finish`."""
        report = self.heading | {
            "experiment": self.name,
            "finished": self.finished,
            "budget_cpu_hours": self.budget,
            "cpu_hours": round(sum(record["cpu_seconds"] for record in self.records) / 3600, 3),
            "summary": self.summary,
            "runs": self.records,
        }
        write(self.path, dumps(report))

    def finish(self, summary: dict | None = None) -> dict:
        """
        Keeps the wanted runs and their summary, by default that of `summarise`, and returns the report; its date stays
        that of the last run.
        """
        self.records = [record for record in self.records if record["settings"] in self.wanted]
        self.summary, self.finished = self.summary if summary is None else summary, True
        self.save()
        report = json.loads(self.path.read_text())
        self.console.print(f"{self.name}: {report['cpu_hours']} CPU hours (budget {self.budget}), {self.path}")
        return report


def dumps(report: dict) -> str:
    """JSON with one line per run: a diff shows which runs are new."""
    runs = ",\n".join("  " + json.dumps(run, allow_nan=False) for run in report["runs"])
    rest = {key: value for key, value in report.items() if key != "runs"}
    return json.dumps(rest, indent=1, allow_nan=False)[:-2] + ',\n "runs": [\n' + runs + "\n ]\n}\n"


@cache
def pool(workers: int) -> tuple[ProcessPoolExecutor, SimpleQueue]:
    """
    The worker processes of all experiments: each takes seconds to import what it needs. And the queue on which they
    tell (number of a run, share of it that is done).
    """
    context = get_context("spawn")
    shares = context.SimpleQueue()
    return ProcessPoolExecutor(workers, context, start_worker, (shares,)), shares


def stop(workers: ProcessPoolExecutor) -> None:
    """Ends the worker processes in the middle of their runs."""
    processes = list((workers._processes or {}).values())
    workers.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    pool.cache_clear()


def start_worker(shares: SimpleQueue) -> None:
    global done_shares
    done_shares = shares
    # If the main process is killed, nobody is left to keep a result.
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches them too: the main process ends them
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def make_one(function: Callable, settings: Settings, number: int) -> dict:
    last = [0.0]

    def advance(share: float) -> None:
        if time.monotonic() - last[0] > 1:
            last[0] = time.monotonic()
            done_shares.put((number, share))

    if gc.get_freeze_count() == 0:
        gc.freeze()  # what was imported: Trainer collects garbage, half a second each time
    start = time.process_time()
    transformers.set_seed(settings["seed"])
    result = function(settings, advance)
    done_shares.put((number, 1.0))
    return {
        "result": result,
        "cpu_seconds": round(time.process_time() - start, 2),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def grouped(found: list[dict], name: Callable[[dict], Hashable]) -> dict[Hashable, list[dict]]:
    """Lists of what has the same name, in the order of the first of each."""
    groups: dict[Hashable, list[dict]] = {}
    for each in found:
        groups.setdefault(name(each), []).append(each)
    return groups


def by_settings(records: list[dict], *names: str) -> dict[tuple, list[dict]]:
    """The records for each combination of these settings."""
    return grouped(records, lambda record: tuple(record["settings"][name] for name in names))


def of_seeds(stages: dict[str, list[dict]]) -> list[dict]:
    """The records of the stages that are called so: those of the rates that were chosen."""
    return [record for stage, records in stages.items() if stage.endswith("seeds") for record in records]


def best_by(records: list[dict], figure: str, groups: tuple[str, ...], choose: Callable = min) -> dict[tuple, dict]:
    """For each combination of the settings named in `groups`, the settings of the run with the best figure."""
    same = by_settings(records, *groups).items()
    return {key: choose(tried, key=lambda record: record["result"][figure])["settings"] for key, tried in same}


def over_seeds(same: list[dict], *keys: str) -> dict:
    """Mean and spread of a figure, one that stands under these keys in the results of runs that differ in the seed."""
    return mean_and_spread([reduce(getitem, keys, record["result"]) for record in same])


def mean_and_spread(values: list[float]) -> dict:
    """Mean, smallest and largest over seeds: with three of them a standard deviation would say less."""
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values), "seeds": len(values)}
