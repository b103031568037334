"""What the user sees while something takes long: on a terminal a bar with bytes, rate and time left; piped, nothing."""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

# Its `status` is for work whose length is not known; piped, it prints nothing, also where FORCE_COLOR is set.
console = Console(stderr=True, markup=False, emoji=False, force_terminal=None if os.isatty(2) else False)


@contextmanager
def bytes_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(bytes)`."""
    if not console.is_terminal:  # a disabled bar of older releases still prints an empty line
        yield lambda amount: None
        return
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(description, total=total)
        yield lambda amount: progress.advance(task, amount)


@contextmanager
def alongside(
    work: Callable[[Callable[[int], None]], Any], advance: Callable[[int], None]
) -> Iterator[Callable[[], Any]]:
    """
    Runs `work(advance)` in a second thread and yields a function that waits for what it returns or raises. If the body
    fails, the work is given up at its next step.
    """
    failed = False

    def step(amount: int) -> None:
        if failed:
            raise CancelledError
        advance(amount)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, step)
        try:
            yield future.result
        except BaseException:
            failed = True
            raise


def quiet_when_piped() -> Any:
    """For libraries that draw a bar of their own whether or not anyone watches."""
    return nullcontext() if console.is_terminal else redirect_stderr(io.StringIO())
