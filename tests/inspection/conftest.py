"""Nexus models that several files of tests look at, and their pages. They are only read."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoints
import nexus_transformers
from nexus_transformers import NexusConfig, NexusForCausalLM
from nexus_transformers.inspection import inspect

PROMPT = "An exception is raised by the class."
SHAPE = {
    "attention_order": 2,
    "num_layers": 2,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": checkpoints.VOCAB_SIZE,
    "initializer_range": 0.3,  # large enough for attention to be far from uniform
}


@pytest.fixture(scope="session")
def save_nexus(tmp_path_factory):
    """Saves a random model with a tokenizer: `save_nexus(attention_order=3, ...)` -> its folder."""

    @cache
    def run(model_class=NexusForCausalLM, **fields):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("inspect") / "random-nexus"
        model_class(NexusConfig(**SHAPE | fields)).save_pretrained(folder)
        checkpoints.tokenizer().save_pretrained(folder)
        return folder

    return run


@pytest.fixture(scope="session")
def nexus_folder(save_nexus):
    """Order 2 with closed gates, as a conversion makes it."""
    return save_nexus(num_layers=3, inner_gate=True)


@pytest.fixture(scope="session")
def inspected(tmp_path_factory):
    """What `inspect` returned for `PROMPT`: `inspected(folder, gates=...)`. PNGs take longer than all the rest."""

    @cache
    def run(folder, gates=None, pngs=False):
        with pytest.MonkeyPatch.context() as patch:
            if not pngs:
                patch.setitem(sys.modules, "matplotlib.figure", None)
            return inspect(folder, PROMPT, tmp_path_factory.mktemp("inspected") / "out", gates=gates)

    return run


@pytest.fixture(scope="session")
def driver():
    """A browser, started once."""
    pytest.importorskip("selenium")
    import browser

    if not (browser.BROWSER and browser.DRIVER):
        pytest.skip("needs chromium and chromedriver")
    driver = browser.start()
    yield driver
    driver.quit()


@pytest.fixture
def no_pngs(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture(scope="session")
def induction(tmp_path_factory):
    """The example's model, trained: `induction(order, steps)` -> (folder, accuracy)."""

    @cache
    def run(order, steps):
        folder = tmp_path_factory.mktemp("induction") / f"order-{order}"
        script = Path(nexus_transformers.__file__).parent / "examples" / "induction.py"
        command = [sys.executable, script, folder, "--order", str(order), "--steps", str(steps)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return folder, float(re.search(r"accuracy (\S+)", output)[1])

    return run


@pytest.fixture(scope="session")
def kept():
    """Weights as a page keeps them: to three decimals, those below 0.01 to four shades."""

    def run(weights):
        thousandths = 1000 * np.asarray(weights)
        return np.where(thousandths < 9.5, np.sqrt(thousandths).round() ** 2, thousandths.round()) / 1000

    return run
