"""Ctrl-C while the `nexus` command still imports PyTorch and Transformers, which takes seconds: one word."""

import os
import signal
import sys
import threading


def stop(number: int, frame: object) -> None:
    """There is nothing to clean up yet. An exception would not do: what is being imported may catch it."""
    os.write(2, b"Interrupted.\n")
    os._exit(130)


is_command = os.path.basename((getattr(sys, "argv", None) or [""])[0]) == "nexus"
if is_command and threading.current_thread() is threading.main_thread():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
