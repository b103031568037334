"""A converted model that several files of tests change copies of."""

import shutil
from pathlib import Path

import pytest

from nexus_transformers.conversion_scripts.convert import convert


@pytest.fixture(scope="session")
def converted(llama_folder, tmp_path_factory):
    """What `llama_folder` becomes. It is only read."""
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(llama_folder, out, verify=False)
    return out


@pytest.fixture
def model(converted, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(converted, tmp_path / "model"))
