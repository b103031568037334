"""Processes that are killed at a step of their work, and what they leave behind."""

import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")  # what Python tells of beforehand


def in_a_child(work: Callable[[], object], before_each_change: Callable[[], None]) -> int:
    """Runs `work` in a forked process, and something before all that it does to a file. Returns how it ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            main = os.getpid(), threading.get_ident()
            busy = False

            def watch(event, _):
                nonlocal busy
                if event in CHANGES and not busy and (os.getpid(), threading.get_ident()) == main:
                    busy = True
                    before_each_change()
                    busy = False

            sys.addaudithook(watch)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def is_killed(work: Callable[[], object], step: int) -> bool:
    """Whether SIGKILL came before the `step`-th change; `work` was done before that otherwise."""
    count = 0

    def kill():
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    status = in_a_child(work, kill)
    assert status in (0, -signal.SIGKILL)
    return status != 0


def states(work: Callable[[], object], place: Path, copies: Path) -> list[Path]:
    """
    The folder `place` as SIGKILL would leave it at each step of `work`: a copy in `copies` for every change to it. One
    run has them all.
    """
    copies.mkdir()
    last = None

    def copy():
        nonlocal last
        paths = sorted(place.rglob("*"))
        state = [(path, path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths]
        if state != last:
            shutil.copytree(place, copies / f"{len(os.listdir(copies)):03}", symlinks=True)
            last = state

    assert in_a_child(work, copy) == 0
    return sorted(copies.iterdir())
