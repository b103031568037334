"""What the user sees while something takes long: on a terminal a bar with bytes, rate and time left; piped, nothing."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

console = Console(stderr=True)


@contextmanager
def bytes_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(bytes)`."""
    if not console.is_terminal:  # a disabled bar of older releases still prints an empty line
        yield lambda amount: None
        return
    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(description, total=total)
        yield lambda amount: progress.advance(task, amount)


@contextmanager
def spinner(description: str) -> Iterator[None]:
    """For work whose length is not known."""
    if not console.is_terminal:
        yield
        return
    with console.status(description):
        yield


def quiet_when_piped() -> Any:
    """For libraries that draw a bar of their own whether or not anyone watches."""
    return nullcontext() if console.is_terminal else redirect_stderr(io.StringIO())
