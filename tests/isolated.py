"""A process in which our package cannot be imported, as it is with everyone who only has a model folder."""

import json
import os
import subprocess
import sys
from pathlib import Path


def run_isolated(script: str, tmp_path: Path, *arguments, packages: Path | None = None) -> dict:
    """
    Runs a script in which `import nexus_transformers` fails, and returns the JSON that it prints last. It also finds
    what lies in the folder `packages`.
    """
    script = "import sys; sys.modules['nexus_transformers'] = None\n" + script
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(packages)} if packages else {}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.strip().splitlines()[-1])
