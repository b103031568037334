"""
Runs a function in a forked process that may use little time and memory: tokenizers and chat templates are programs, and
one of a few lines can run for ever or fill the memory. Imports nothing of ours: isolated checks have a copy.
"""

import faulthandler
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 120  # for each step
MEMORY = 4 << 30  # beyond what this process has, which the fork shares
ANSWER = 64 << 20  # bytes
UNLESS_PARALLEL = "TOKENIZERS_PARALLELISM"  # after a fork its threads are gone, and waiting for them would never end

_to_parent = None  # the connection, in the forked process


class Exceeded(Exception):
    """A function used more time or memory than it may. The message is a whole sentence."""


def bounded(function: Callable, *arguments: Any, raises: type[Exception] = Exceeded) -> Any:
    """
    Returns or raises what `function(*arguments)` does in a forked process; both have to be picklable.

    Raises:
        `raises`: a step of it took more than `SECONDS`, or it needed more than `MEMORY`. On Linux only: elsewhere it is
            called as it is, as a fork with PyTorch loaded is not safe there.
    """
    if sys.platform != "linux":
        return function(*arguments)
    receiver, sender = Pipe(duplex=False)
    child = fork()
    if child == 0:
        answer(sender, function, arguments)
    doing, kind, value = "the function", None, None
    try:
        sender.close()
        while kind in (None, "step"):
            doing = value or doing
            kind, value = pickle.loads(receiver.recv_bytes()) if receiver.poll(SECONDS) else ("slow", None)
    except (EOFError, OSError):  # the process is gone: Rust ends it where Python would raise a MemoryError
        kind = "large"
    finally:
        receiver.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if kind in ("slow", "large"):
        limit = f"{SECONDS} seconds" if kind == "slow" else f"{MEMORY / (1 << 30):.2g} GB of memory"
        raise raises(f"{doing} takes more than {limit}; correct that file, or remove it.")
    if kind == "raised":
        raise value
    return value


def step(doing: str) -> None:
    """What the function does next, and with which file, for the message. The time begins anew."""
    if _to_parent is not None:
        _to_parent.send_bytes(pickle.dumps(("step", doing)))


def fork() -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.environ.get(UNLESS_PARALLEL)
    os.environ[UNLESS_PARALLEL] = "false"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the child starts none
            return os.fork()
    finally:
        if before is None:
            del os.environ[UNLESS_PARALLEL]
        else:
            os.environ[UNLESS_PARALLEL] = before


def answer(sender: Any, function: Callable, arguments: tuple) -> NoReturn:
    """In the forked process: sends what the function returns or raises, and ends without a trace of its own."""
    global _to_parent
    try:
        _to_parent = sender
        os.environ[UNLESS_PARALLEL] = "false"
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        faulthandler.disable()
        limit_resources()
        try:
            message = pickle.dumps(("returned", function(*arguments)))
        except MemoryError:
            message = pickle.dumps(("large", None))
        except BaseException as error:
            message = portable(error)
        sender.send_bytes(message if len(message) <= ANSWER else pickle.dumps(("large", None)))
    finally:
        os._exit(0)


def portable(error: BaseException) -> bytes:
    """Some exceptions of other libraries cannot be pickled, or not back again."""
    try:
        message = pickle.dumps(("raised", error))
        pickle.loads(message)
    except Exception:
        message = pickle.dumps(("raised", RuntimeError(f"{type(error).__name__}: {error}")))
    return message


def limit_resources() -> None:
    import resource  # Windows has none

    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    limits = {resource.RLIMIT_DATA: used + MEMORY, resource.RLIMIT_CORE: 0}
    limits[resource.RLIMIT_CPU] = 30 * SECONDS  # in case that nobody is left to kill it
    for kind, wanted in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
