"""
A tiny model with one file damaged, each time another way, determined by a number: what becomes of it is the same model
as Transformers sees in the damaged folder, or one sentence, and then nothing is left.
`NEXUS_MUTATIONS=2000 pytest tests/conversion_scripts/test_mutations.py` tries so many ways.
"""

import os
import random
import shutil
from pathlib import Path

import pytest

import checkpoints
from damage import assert_same, damage, run
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.conversion_scripts.hub.upload import prepare
from nexus_transformers.conversion_scripts.to_source import convert_to_source
from nexus_transformers.errors import NexusError

NUMBERS = range(int(os.environ.get("NEXUS_MUTATIONS", 150)))
ONE_IN = 5  # is converted, and what comes of it is run; of the others only the plan is made


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two shards and an index, a tokenizer, a chat template, generation settings and a card."""
    folder = tmp_path_factory.mktemp("mutations") / "source"
    checkpoints.llama(folder, max_shard_size="150KB", num_hidden_layers=2, attention_bias=True)
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\ntags: [a]\n---\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def model(source):
    """The Nexus model of it."""
    convert(source, source.parent / "model", verify=False)
    return source.parent / "model"


def damaged(folder: Path, place: Path, number: int) -> tuple[Path, str]:
    copy = Path(shutil.copytree(folder, place / "source"))
    return copy, f"number {number}: {damage(copy, random.Random(number))}"


def refused(what, how: str, place: Path) -> bool:
    """Whether it ends in one sentence. Anything else that it raises is a fault."""
    try:
        what()
    except NexusError as error:
        assert str(error).isprintable() and 20 < len(str(error)) < 1100, how
        assert sorted(path.name for path in place.iterdir()) == ["source"], how
        return True
    except BaseException as error:
        raise AssertionError(how) from error
    return False


def loaded(folder: Path):
    """What anyone sees of it; None if Transformers itself cannot load it."""
    try:
        return run(folder, rounds=False)
    except Exception:
        return None


@pytest.mark.parametrize("number", NUMBERS)
def test_a_damaged_checkpoint(number, source, tmp_path):
    damaged_source, how = damaged(source, tmp_path, number)
    whole, out = number % ONE_IN == 0, tmp_path / "out"
    if refused(lambda: convert(damaged_source, out, verify=False, dry_run=not whole), how, tmp_path) or not whole:
        return
    if (expected := loaded(damaged_source)) is not None:
        assert_same(expected, run(out, rounds=False), rounds=False)


@pytest.mark.parametrize("number", NUMBERS[::3])
def test_a_damaged_nexus_model(number, model, tmp_path):
    folder, how = damaged(model, tmp_path, number)
    refused(lambda: convert_to_source(folder, tmp_path / "back", verify=False, dry_run=number % 2 == 0), how, tmp_path)
    shutil.rmtree(tmp_path / "back", ignore_errors=True)
    (tmp_path.parent / f"stage-{number}").mkdir()
    refused(lambda: prepare(folder, "someone/nexus", tmp_path.parent / f"stage-{number}"), how, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS[:: max(len(NUMBERS) // 2, 50)])
def test_a_damaged_checkpoint_is_verified_or_refused(number, source, tmp_path):
    damaged_source, how = damaged(source, tmp_path, number)
    refused(lambda: convert(damaged_source, tmp_path / "out"), how, tmp_path)
