"""
What ends the `nexus` command while it still imports PyTorch and Transformers, which takes seconds: Ctrl-C, in one word,
and a working directory that is gone, of which these imports would complain with a traceback.
"""

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
if is_command:
    try:
        os.getcwd()
    except FileNotFoundError:
        os.write(2, b"error: The folder that you are in was deleted; go to another one.\n")
        os._exit(1)
