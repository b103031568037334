"""What `pip install .` takes from the checkout, what it leaves there, and the versions that it admits."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import nexus_transformers
from nexus_transformers.configuration_nexus import TESTED_TRANSFORMERS

ROOT = Path(nexus_transformers.__file__).parent
FOLDERS = ["conversion_scripts", "inspection", "tokenization"]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The wheel's contents, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = shutil.copytree(
        ROOT, folder / "checkout", ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "demo")
    )
    before = files(checkout)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, "."]
    subprocess.run(pip, cwd=checkout, check=True)
    assert files(checkout) == before, "pip leaves nothing in the checkout"
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_package_and_nothing_else(site):
    package = {"model_card.md"} | {path.name for path in ROOT.glob("*.py")} - {"setup.py"}
    for folder in FOLDERS:
        package |= {f"{folder}/{name}" for name in files(ROOT / folder) if "__pycache__" not in name}
    assert files(site / "nexus_transformers") == package
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"nexus_transformers"}


def test_every_module_of_the_wheel_imports_and_the_command_runs(site, tmp_path):
    script = """
import importlib, importlib.machinery, pkgutil, sys
from importlib import metadata
sys.path.insert(0, sys.argv[1])
sys.meta_path.insert(0, importlib.machinery.PathFinder)  # before the finder of an editable install
import nexus_transformers
names = [module.name for module in pkgutil.walk_packages(nexus_transformers.__path__, "nexus_transformers.")]
for name in names:
    assert importlib.import_module(name).__file__.startswith(sys.argv[1])
assert len(names) > 40
sys.argv = ["nexus", "--help"]
(command,) = metadata.distribution("nexus-transformers").entry_points
command.load()()
"""
    command = [sys.executable, "-c", script, site]
    process = subprocess.run(command, cwd=tmp_path, env=os.environ | {"COLUMNS": "80"}, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "convert" in process.stdout


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / name).read_text(), re.MULTILINE))


def test_the_pins_are_inside_the_ranges_and_the_oldest_are_their_lower_ends(site):
    (distribution,) = metadata.distributions(path=[str(site)])
    pinned, oldest = pins("constraints.txt"), pins("constraints-oldest.txt")
    for requirement in map(Requirement, distribution.requires):
        if requirement.name == "nexus-transformers":
            continue
        assert pinned[requirement.name] in requirement.specifier, requirement
        extra = re.search(r'extra == "(.+)"', str(requirement.marker))
        if extra is None or extra[1] not in ("lint", "tools", "evidence", "dev"):  # `make test-oldest` has none of them
            lower = next(end.version for end in requirement.specifier if end.operator == ">=")
            assert re.sub(r"(\.0)+$", "", oldest[requirement.name]) == lower, requirement


def test_the_code_that_travels_says_which_versions_the_package_admits(site):
    (distribution,) = metadata.distributions(path=[str(site)])
    (admitted,) = (item.specifier for item in map(Requirement, distribution.requires) if item.name == "transformers")
    oldest, newest = TESTED_TRANSFORMERS
    major, minor = newest.split(".")
    assert admitted == SpecifierSet(f">={oldest},<{major}.{int(minor) + 1}")
