"""
The edge of the `nexus` command: however it ends, the user reads one sentence at most, never a traceback unless asked
for, and what is printed is only text.
"""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from ..errors import NexusError, reason_of, shown
from .printing import print_json

FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk; such errors name no file


def run(command: Callable[[], object]) -> None:
    """Runs a command line and leaves with its exit status, 1 if anything failed. `--debug` may stand anywhere in it."""
    open_streams()
    debug = take("--debug")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: complain(f"warning: {shown(message)}")
        status = outcome(command, debug)
    try:
        sys.stdout.flush()
    except OSError as error:  # a full disk, or nobody reads any more
        silence(sys.stdout)
        if not status:
            status = complain(f"error: the output could not be written ({reason_of(error)}).")
    sys.exit(status)


def outcome(command: Callable[[], object], debug: bool) -> object:
    """The exit status."""
    try:
        command()
    except SystemExit as ending:
        return ending.code
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of the libraries written in Rust is no Exception
        if debug:
            for line in "".join(traceback.format_exception(error)).splitlines():
                complain(shown(line))
        return fail(sentence(error))
    return 0


def sentence(error: BaseException) -> str:
    if isinstance(error, NexusError):
        return str(error)
    if isinstance(error, OSError) and (error.filename or error.errno in FULL):
        return shown(f"{error.filename or 'A file'}: cannot be read or written ({reason_of(error)}).")
    return shown(
        f"this was not foreseen: {type(error).__name__} ({reason_of(error)}). Run it again with --debug to see where "
        "it happened, and report that."
    )


def fail(message: str) -> int:
    if "--json" in sys.argv:
        with suppress(OSError):
            print_json({"error": message})
            return 1
    return complain(f"error: {message}")


def complain(line: str) -> int:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)
    return 1


def take(option: str) -> bool:
    """Whether the option is in the command line, from which it is removed."""
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    before = [argument for argument in sys.argv[:end] if argument != option]
    sys.argv[:end] = before
    return len(before) < end


def open_streams() -> None:
    """Those that are closed lead nowhere, and what an encoding does not have is escaped."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def silence(stream: TextIO) -> None:
    """What it still holds goes nowhere, else Python would complain of it at the end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
