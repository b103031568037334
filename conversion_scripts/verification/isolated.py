"""
Runs a check in a fresh process, as someone who has only torch and transformers would: the script lies in an empty
folder, PYTHONPATH is not set, and the caches of the Hub are new.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ...errors import VerificationError, reason_of
from ..checkpoint.files import write_json


def run_isolated(
    script: str, request: dict[str, Any], failure: str, beside: tuple[str, ...] = (), **environment: str
) -> dict[str, Any]:
    """
    Runs `script`, a file of this folder, as `python script REQUEST.json RESULT.json` and returns the result.

    Args:
        script: file name. It is copied to an empty folder with the files `beside` it, which are all that it may import
            besides torch and transformers.
        request: what the script reads. Paths in it must be absolute.
        failure: begins the message if the script fails, for example "out: could not be loaded".
        environment: more variables for the process.

    Raises:
        `VerificationError`: the script failed. The message ends with the last line that it printed.
    """
    with tempfile.TemporaryDirectory(prefix="nexus-check-") as scratch:
        request_file, result_file = Path(scratch) / "request.json", Path(scratch) / "result.json"
        write_json(request_file, request)
        for file in (script, *beside):
            shutil.copy(Path(__file__).parent / file, scratch)
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # Not HF_HOME: the token is kept there.
        caches = {f"HF_{name}_CACHE": f"{scratch}/{name}" for name in ("HUB", "MODULES", "XET")}
        process = subprocess.run(
            [sys.executable, f"{scratch}/{script}", request_file, result_file],
            cwd=scratch,
            env=inherited | caches | environment,
            capture_output=True,
            text=True,
        )
        if process.returncode != 0:
            lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
            raise VerificationError(f"{failure} ({reason_of(lines[-1])}).")
        return json.loads(result_file.read_text())
