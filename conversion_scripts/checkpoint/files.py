"""The files of a model folder: their names, how they are read, and that each of them is a file, and lies there."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...configuration_nexus import AUTO_MAP
from ...errors import CheckpointError, reason_of
from ...tokenization.carry_over import CARRIED_FILES

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
CODE_FILES = sorted({reference.split(".")[0] + ".py" for reference in AUTO_MAP.values()})  # of ROOT; they travel along
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
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a surrogate, as JSON escapes it


def sha256(file: Path, advance: Callable[[int], None] = lambda amount: None) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def licences(folder: Path) -> list[Path]:
    found = {file for pattern in LICENCE_FILES for file in folder.glob(pattern) if file.is_file()}
    return sorted(file for file in found if file.suffix not in (".py", ".json", ".safetensors"))


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
    The links of the Hub's cache lead to its blobs. Also for what `check_file` refuses.
    """
    allowed = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        allowed.append(folder.resolve().parent.parent / "blobs")
    for file in folder.rglob("*"):
        target = Path(os.path.realpath(file))  # of links in a circle the link itself
        if file.is_symlink() and not any(target.is_relative_to(place) for place in allowed):
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
