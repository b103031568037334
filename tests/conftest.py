import os
import subprocess
import sys
import time
from pathlib import Path

# Read at import, and handed down to every process that a test starts.
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models, several workers: threads would only get into each other's way
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of these processes would compile Transformers again

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def check_without_imports(tmp_path_factory):
    """
    In this process, a check begins in a copy of a process that has torch and transformers ready, which saves it six
    seconds. The `nexus` command as a process of its own, and what is run after a push, start theirs as always.
    """
    from nexus_transformers.conversion_scripts.verification import isolated

    ready, place, servers = Path(__file__).with_name("ready.py"), tmp_path_factory.mktemp("ready") / "socket", []
    as_always = isolated.run

    def run(command, *arguments):
        if Path(command[1]).name != "isolated_check.py":
            return as_always(command, *arguments)
        if not servers:
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            start = [sys.executable, ready, place]
            servers.append(subprocess.Popen(start, stdin=subprocess.PIPE, env=environment, cwd=place.parent))
            while not place.exists():
                assert servers[0].poll() is None
                time.sleep(0.1)
        return as_always([command[0], "-S", "-E", str(ready), str(place), *command[1:]], *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolated, "run", run)
        yield
    for server in servers:
        server.stdin.close()
        server.wait()


@pytest.fixture
def nexus(monkeypatch, capsys):
    """The `nexus` command, through its entry point: `nexus("convert", ...)` -> (exit status, stdout, stderr)."""
    from nexus_transformers.conversion_scripts.cli import main

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["nexus", *(str(argument) for argument in arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
            raise SystemExit(0)
        captured = capsys.readouterr()
        return exit_info.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """A tiny Llama checkpoint, shared by the tests that only read it."""
    import checkpoints

    return checkpoints.llama(tmp_path_factory.mktemp("llama") / "source")


def pytest_collection_modifyitems(items):
    """Slow tests first: begun last, one of them would keep a worker busy long after the others have finished."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
