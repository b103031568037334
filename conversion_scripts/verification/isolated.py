"""
Runs a check in a fresh process, as someone who has only torch and transformers would: the script lies in an empty
folder, PYTHONPATH is not set, and the caches of the Hub are new.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ... import bounded
from ...errors import VerificationError, reason_of
from ..checkpoint.files import write_json


def run_isolated(
    script: str,
    request: dict[str, Any],
    failure: str,
    seconds: float | None = None,
    prepare: Callable[[Path], None] = lambda scratch: None,
    **environment: str,
) -> dict[str, Any]:
    """
    Runs `script`, a file of this folder, as `python script REQUEST.json RESULT.json` and returns the result.

    Args:
        script: file name. It is copied to an empty folder with bounded.py and the files isolated_*.py, which are all
            that it may import besides torch and transformers.
        request: what the script reads. Paths in it must be absolute.
        failure: begins the message if the script fails, for example "out: could not be loaded".
        seconds: after which it is given up.
        prepare: is called with that folder first, and may add to both. What is in it goes however this process ends.
        environment: more variables for the process.

    Raises:
        `VerificationError`: the script failed, or took too long. The message ends with the last line that it printed.
    """
    with tempfile.TemporaryDirectory(prefix="nexus-check-") as scratch:
        request_file, result_file = Path(scratch) / "request.json", Path(scratch) / "result.json"
        prepare(Path(scratch))
        write_json(request_file, request)
        here = Path(__file__).parent
        for file in (here / script, *here.glob("isolated_*.py"), bounded.__file__):
            shutil.copy(file, scratch)
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # Not HF_HOME: the token is kept there.
        caches = {f"HF_{name}_CACHE": f"{scratch}/{name}" for name in ("HUB", "MODULES", "XET")}
        command = [sys.executable, f"{scratch}/{script}", str(request_file), str(result_file)]
        try:
            status, errors = run(command, scratch, inherited | caches | environment, seconds)
        except subprocess.TimeoutExpired:
            raise VerificationError(f"{failure} (it took more than {seconds / 3600:.0f} hours).") from None
        if status != 0:
            lines = errors.strip().splitlines() or [f"exit status {status}"]
            raise VerificationError(f"{failure} ({reason_of(lines[-1])}).")
        return json.loads(result_file.read_text())


def run(command: list[str], folder: str, environment: dict[str, str], seconds: float | None) -> tuple[int, str]:
    """
    Exit status and standard error of a command. However this function or this process ends, the command ends too, with
    all that it started: here, or by isolated_parent.py, which waits for the end of the pipe.
    """
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=reader,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            errors = process.communicate(timeout=seconds)[1]
        finally:
            with suppress(OSError):  # it has ended, with all that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return process.returncode, errors
    finally:
        os.close(reader)
        os.close(writer)
