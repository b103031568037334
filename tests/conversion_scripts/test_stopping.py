"""The `nexus` command that is told to stop: quiet, with the status that shells give, and nothing of it stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nexus_transformers import interrupt
from nexus_transformers.conversion_scripts.stopping import stopped_by_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_command_clean_up(number):
    cleaned_up, before = False, signal.signal(number, signal.SIG_DFL)  # it may be ignored here
    with pytest.raises(SystemExit) as raised:
        with stopped_by_signals():
            try:
                os.kill(os.getpid(), number)
                time.sleep(10)
            finally:
                cleaned_up = True
    assert cleaned_up and raised.value.code == 128 + number
    assert signal.signal(number, before) is signal.SIG_DFL, "as it was"


def test_a_signal_that_is_ignored_stays_ignored():
    """nohup nexus convert ..."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_is_an_exception_again_when_all_is_imported():
    before = signal.signal(signal.SIGINT, interrupt.stop)
    try:
        with pytest.raises(KeyboardInterrupt), stopped_by_signals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to see how far the command is")
def test_ctrl_c_while_the_command_is_still_importing_is_one_word():
    command = [Path(sys.executable).with_name("nexus"), "--help"]
    for _ in range(5):  # on a busy machine it may come too late
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
        if process.returncode != 0:
            break
    assert (process.returncode, output, errors) == (130, "", "Interrupted.\n")


def test_the_package_alone_leaves_ctrl_c_as_it_is():
    assert signal.getsignal(signal.SIGINT) is not interrupt.stop
