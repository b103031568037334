"""A little experiment for test_runs.py. As a script: `runs_worker.py OUT WORKERS SECONDS WISH [WISH ...]`."""

import sys
import time
from argparse import Namespace
from pathlib import Path

from experiments.runs import Experiment


def one_run(run, advance):
    with open(run["log"], "a") as log:
        log.write(f"{run['wish']}\n")
    if run["wish"] == "fail":
        raise ValueError("this run fails")
    deadline = time.monotonic() + run["seconds"]
    while time.monotonic() < deadline:
        advance(0.5)
        time.sleep(0.05)
    return {"length": len(run["wish"])}


def main(options, wishes, seconds):
    experiment = Experiment("little", 0.1, options, one_run)
    log = str(options.out / "log")
    wanted = [{"wish": wish, "seed": 0, "seconds": seconds, "log": log} for wish in wishes]
    records = experiment.run("stage", wanted)
    experiment.finish({"lengths": [record["result"]["length"] for record in records]})


if __name__ == "__main__":
    out, workers, seconds, *wishes = sys.argv[1:]
    main(Namespace(out=Path(out), workers=int(workers), quick=False), wishes, float(seconds))
