"""How the `nexus` command ends when it is told to: as on Ctrl-C, with what it started, and cleaned up."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .. import interrupt


def stop(number: int, frame: object) -> None:
    sys.exit(128 + number)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """
    SIGTERM and SIGHUP raise SystemExit, where they would end the process on the spot; Ctrl-C raises KeyboardInterrupt
    again. A signal that is ignored stays so, as under nohup.
    """
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return
    if signal.getsignal(signal.SIGINT) is interrupt.stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    ending = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ending = [number for number in ending if signal.getsignal(number) is signal.SIG_DFL]
    for number in ending:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)
