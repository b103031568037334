"""The files of a model folder: their names, how they are read, and that each of them is a file, and lies there."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, reason_of
from ...tokenization.carry_over import CARRIED_FILES, CHAT_TEMPLATES

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
REPORT_FILE = "conversion_report.json"
CARD_FILE = "README.md"
ROOT = Path(__file__).parents[2]
# In whatever case, and as part of a name: LICENSE.md, license.txt, LLAMA_LICENSE, Notice
LICENCE_FILES = [
    f"*{''.join(f'[{letter.lower()}{letter}]' for letter in word)}*"
    for word in ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
]
# Endings of texts, beside versions as in LICENSE-2.0. Nobody loses a classifier of licences.
TEXTS = ("", *(f".{each}" for each in "md txt rst html htm pdf rtf doc docx tex license licence notice".split()))
# Of ROOT; they travel along.
CODE_FILES = ["attention_nexus.py", "configuration_nexus.py", "inputs_nexus.py", "modeling_nexus.py"]
# Of a model folder, as patterns. Nothing else is published, and a folder with anything else is not replaced: nobody
# loses optimizer states, checkpoints and logs.
MODEL_FILES = [
    "config.json",
    CARD_FILE,
    REPORT_FILE,
    *CODE_FILES,
    *CARRIED_FILES,
    CHAT_TEMPLATES,
]
WEIGHT_FILES = [SINGLE_FILE, INDEX_FILE, "model-*-of-*.safetensors"]
LEFT_BY_A_KILL = ".*.new"  # by `write_text`
READ_WHOLE = ("config.json", INDEX_FILE, REPORT_FILE, CARD_FILE, *CARRIED_FILES)
LARGEST = 256 << 20  # bytes of one that is read whole; tokenizer.json of the largest vocabularies has 35 MB


def read_json(file: Path, hint: str = "download the checkpoint again") -> dict[str, Any]:
    check_file(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_float=finite, parse_constant=finite)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file.parent}: has no {file.name}; {hint}.") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({reason_of(error)}).") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: is not valid JSON ({reason_of(error)}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: is not a JSON object.")
    return content


def finite(number: str) -> float:
    """NaN and infinities, which Python reads and JSON does not have, are equal to nothing, or to too much."""
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is no number")
    return float(number)


def write_json(file: Path, content: dict[str, Any]) -> None:
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Whatever happens, the file is the old one or the new one, whole. A link there is replaced and not followed."""
    temporary = file.with_name(f".{file.name}.new")
    try:
        temporary.write_bytes(text.encode(errors="backslashreplace"))  # half a surrogate, as JSON escapes it
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256(file: Path, advance: Callable[[int], None] = lambda amount: None) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def is_gguf(file: Path) -> bool:
    return file.suffix.lower() == ".gguf"


def is_one_of(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path within a folder has one of these patterns, in which `*` stands for no slash."""
    parts = name.split("/")
    wanted = [pattern.split("/") for pattern in patterns]
    return any(len(each) == len(parts) and all(map(fnmatchcase, parts, each)) for each in wanted)


def is_licence(name: str) -> bool:
    ending = Path(name).suffix.lower()
    return is_one_of(name, LICENCE_FILES) and (ending in TEXTS or ending[1:].isdigit())


def is_model_file(name: str) -> bool:
    """Whether `convert` may have written this path in its output."""
    return is_one_of(name, [*MODEL_FILES, *WEIGHT_FILES, LEFT_BY_A_KILL]) or is_licence(name)


def licences(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if is_licence(file.name) and file.is_file())


def carry_licences(source: Path, target: Path) -> list[str]:
    """Copies the licence, and what comes with it: many say that every copy must hold them. Returns their names."""
    return [Path(shutil.copyfile(file, target / file.name)).name for file in licences(source)]


def is_complete(file: Path, description: dict[str, Any] | None) -> bool:
    """Whether the file is the one described, by its size and its hash."""
    if description is None or not file.is_file() or file.stat().st_size != description["bytes"]:
        return False
    return sha256(file) == description["sha256"]


def check_files(folder: Path) -> None:
    """
    Raises `CheckpointError` if a link leads out of the folder: what it leads to would be copied, and perhaps published.
    The links of the Hub's cache lead to its blobs, which are files: nobody would look into a folder there. Also for
    what `check_file` refuses.
    """
    inside = folder.resolve()
    blobs = inside.parent.parent / "blobs" if inside.parent.name == "snapshots" else inside
    for file in folder.rglob("*"):
        target = Path(os.path.realpath(file))  # of links in a circle the link itself
        is_blob = target.is_relative_to(blobs) and not target.is_dir()
        if file.is_symlink() and not target.is_relative_to(inside) and not is_blob:
            raise CheckpointError(
                f"{file}: is a symbolic link out of the folder, to {target}; copy the file itself there."
            )
        check_file(file)


def check_file(file: Path) -> None:
    """Raises `CheckpointError` for what cannot be read to its end: pipes, sockets, devices, and text without end."""
    if file.is_dir() or not file.exists():
        return
    if not file.is_file():
        raise CheckpointError(f"{file}: is a pipe, a socket or a device and not a file; remove it.")
    if file.stat().st_size > LARGEST and (file.name in READ_WHOLE or file.suffix in (".jinja", ".py")):
        raise CheckpointError(
            f"{file}: has more than {LARGEST >> 20} MB, which no such file needs; replace or remove it."
        )
