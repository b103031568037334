import os

# Read at import, and handed down to every process that a test starts.
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models, several workers: threads would only get into each other's way
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of these processes would compile Transformers again

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


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
