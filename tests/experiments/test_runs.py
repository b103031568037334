"""Runs are made once, kept as soon as they are done, and continued after an interruption; all in real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import psutil
import pytest

import runs_worker
from experiments.runs import best_by, mean_and_spread

WORKER = Path(runs_worker.__file__)


def start(out, *wishes, seconds=0, workers=1):
    """The little experiment in a process of its own, to be interrupted."""
    command = [sys.executable, str(WORKER), str(out), str(workers), str(seconds), *wishes]
    environment = os.environ | {"PYTHONPATH": str(WORKER.parents[1])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (out / "log").exists():  # until the first run has begun
        time.sleep(0.1)
        assert process.poll() is None, process.stdout.read()
    return process


def run(out, *wishes):
    runs_worker.main(Namespace(out=out, workers=1, quick=False), wishes, seconds=0)


def made(out):
    return (out / "log").read_text().split()


def report(out):
    return json.loads((out / "little.json").read_text())


@pytest.mark.slow
def test_a_run_is_made_once_and_unwanted_ones_are_dropped_in_the_end(tmp_path, capsys):
    run(tmp_path, "a", "bb")
    assert made(tmp_path) == ["a", "bb"]
    assert report(tmp_path)["summary"] == {"lengths": [1, 2]}
    capsys.readouterr()
    run(tmp_path, "bb", "ccc", "a")
    assert "3 runs, 1 to make" in capsys.readouterr().out
    assert made(tmp_path) == ["a", "bb", "ccc"]
    assert report(tmp_path)["summary"] == {"lengths": [2, 3, 1]}
    run(tmp_path, "ccc")
    assert [each["settings"]["wish"] for each in report(tmp_path)["runs"]] == ["ccc"]
    assert report(tmp_path)["runs"][0].keys() == {"settings", "result", "cpu_seconds", "date"}


@pytest.mark.slow
def test_what_was_done_before_a_failure_is_kept(tmp_path, capsys):
    with pytest.raises(ValueError, match="this run fails"):
        run(tmp_path, "a", "fail")
    assert "1 of 2 runs are kept" in capsys.readouterr().out
    assert [each["settings"]["wish"] for each in report(tmp_path)["runs"]] == ["a"]
    assert (report(tmp_path)["finished"], report(tmp_path)["summary"]) == (False, {})
    run(tmp_path, "a", "bb")
    assert made(tmp_path) == ["a", "fail", "bb"]
    assert report(tmp_path)["finished"] is True
    with pytest.raises(ValueError, match="this run fails"):
        run(tmp_path, "a", "bb", "ccc", "fail")
    assert (report(tmp_path)["finished"], report(tmp_path)["summary"]) == (False, {"lengths": [1, 2]})


@pytest.mark.slow
def test_an_interrupted_experiment_continues(tmp_path, capsys):
    process = start(tmp_path, "a", "bb", seconds=2)
    while not (tmp_path / "little.json").exists():
        time.sleep(0.1)
        assert process.poll() is None, process.stdout.read()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted; 1 of 2 runs are kept" in output.replace("\n", " ")
    assert "Traceback" not in output
    runs_worker.main(Namespace(out=tmp_path, workers=1, quick=False), ("a", "bb"), seconds=2)
    assert "2 runs, 1 to make" in capsys.readouterr().out
    assert report(tmp_path)["summary"] == {"lengths": [1, 2]}


@pytest.mark.slow
def test_workers_of_a_killed_experiment_stop(tmp_path):
    process = start(tmp_path, "a", seconds=600, workers=2)  # one of them idle
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.kill()
    process.communicate(timeout=60)  # ends when nobody has the pipe open any more
    assert psutil.wait_procs(workers, timeout=30)[1] == []


def test_a_foreign_file_is_not_overwritten(tmp_path):
    (tmp_path / "little.json").write_text("mine")
    with pytest.raises(SystemExit, match="is not a results file"):
        run(tmp_path, "a")
    assert (tmp_path / "little.json").read_text() == "mine"


def test_best_by():
    records = [
        {"settings": {"variant": variant, "rate": rate}, "result": {"loss": loss}}
        for variant, rate, loss in (("a", 1, 3.0), ("a", 2, 2.0), ("b", 1, 1.0), ("b", 2, 1.5))
    ]
    assert best_by(records, "loss", ("variant",)) == {
        ("a",): {"variant": "a", "rate": 2},
        ("b",): {"variant": "b", "rate": 1},
    }
    assert best_by(records, "loss", ("variant",), max)[("b",)]["rate"] == 2


def test_mean_and_spread():
    assert mean_and_spread([1.0, 2.0, 6.0]) == {"mean": 3.0, "min": 1.0, "max": 6.0, "seeds": 3}
