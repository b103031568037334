"""What of a folder is pushed to the Hub: a complete Nexus model, checked before anything is sent, and nothing else."""

import re
import shutil
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from ...configuration_nexus import AUTO_MAP
from ...errors import HubError
from ..checkpoint.code import check_code
from ..checkpoint.files import (
    CARD_FILE,
    CODE_FILES,
    INDEX_FILE,
    MODEL_FILES,
    REPORT_FILE,
    ROOT,
    WEIGHT_FILES,
    is_licence,
    is_one_of,
    read_json,
    sha256,
)
from ..checkpoint.open import AUTO_CLASSES, Nexus, open_nexus
from ..checkpoint.plan import check_tensors
from ..progress import bytes_bar
from .card import card_for_repository

IMPORTS = {"torch", "transformers", "huggingface_hub"}  # Transformers depends on huggingface_hub


@dataclass
class Upload:
    """
    What a push sends.

    Attributes:
        folder: holds exactly the files that are sent; all but the card are links to those of the model.
        nexus: the model, opened.
        auto_class: the Auto class that loads it.
        files: name in the repository -> bytes and sha256.
        left_out: what of the model's folder is not sent. A subfolder of which nothing is sent is one entry.
        notes: what the user should know.
    """

    folder: Path
    nexus: Nexus
    auto_class: str
    files: dict[str, dict[str, Any]]
    left_out: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(description["bytes"] for description in self.files.values())


def prepare(model: Path, repo_id: str, stage: Path, trust_remote_code: bool = False) -> Upload:
    """
    Checks the folder `model`, collects in the empty folder `stage` what is sent to `repo_id`, and hashes it.

    Raises:
        `NexusError`: `model` is not a complete Nexus model, or holds something that must not be published.
    """
    if not model.is_dir():
        raise HubError(f"{model}: no such folder.")
    nexus = open_nexus(model)
    check_auto_map(nexus)
    check_imports(model)
    check_code(model, nexus.raw_config, trust_remote_code)
    check_tensors(nexus, nexus.architecture)
    card = card_for_repository(model, repo_id)

    names = sorted(file.relative_to(model).as_posix() for file in model.rglob("*") if file.is_file())
    weights = [file.name for file in nexus.files] + [INDEX_FILE]
    sent = [name for name in names if name in weights or is_one_of(name, MODEL_FILES) or is_licence(name)]
    check_secrets(model, [name for name in sent if name not in weights])
    for name in sent:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).symlink_to((model / name).resolve())
    (stage / CARD_FILE).unlink()
    (stage / CARD_FILE).write_bytes(card)
    # These are run: they are copied and then checked, whatever becomes of the folder meanwhile.
    for name in ("config.json", *CODE_FILES):
        (stage / name).unlink()
        shutil.copyfile(model / name, stage / name)
    check_code(stage, read_json(stage / "config.json"), trust_remote_code)

    files = {}
    with bytes_bar("hashing", sum((stage / name).stat().st_size for name in sent)) as advance:
        for name in sent:
            files[name] = {"bytes": (stage / name).stat().st_size, "sha256": sha256(stage / name, advance)}
    folders = {name.split("/")[0] for name in sent if "/" in name}
    stray = [name for name in names if name not in files]
    tops = [name if "/" not in name or name.split("/")[0] in folders else name.split("/")[0] + "/" for name in stray]
    upload = Upload(stage, nexus, AUTO_CLASSES[nexus.architecture], files, list(dict.fromkeys(tops)))
    upload.notes += check_report(model, files)
    if any(files[name]["sha256"] != sha256(ROOT / name) for name in CODE_FILES):
        upload.notes.append(
            f"the code in the folder is not that of nexus-transformers {version('nexus-transformers')}, which is "
            "installed here"
        )
    if "tokenizer_config.json" not in files:
        upload.notes.append("the folder has no tokenizer; whoever uses the model has to bring one")
    return upload


def check_auto_map(nexus: Nexus) -> None:
    """It leads to our classes, whichever Auto class is asked. Serving engines ask for `architectures` besides."""
    if not nexus.raw_config.get("architectures"):
        raise HubError(f"{nexus.folder / 'config.json'}: does not name its architectures; save the model anew.")
    auto_map = nexus.raw_config.get("auto_map")
    for auto_class, reference in AUTO_MAP.items():
        if not isinstance(auto_map, dict) or auto_map.get(auto_class) != reference:
            raise HubError(
                f"{nexus.folder / 'config.json'}: auto_map does not say that {auto_class} is {reference}, so nobody "
                "could load the model with it. Load the model and save it with save_pretrained, which writes the whole "
                "map."
            )


def check_imports(model: Path) -> None:
    """The code files are there and import nothing that a user of Transformers does not have."""
    for name in CODE_FILES:
        try:
            imported = get_imports(model / name)
            neighbours = get_relative_imports(model / name)
        except FileNotFoundError:
            raise HubError(
                f"{model}: lacks {name}, the code that loads the model. Load the model and save it with "
                "save_pretrained, which writes it."
            ) from None
        except (SyntaxError, ValueError) as error:
            raise HubError(f"{model / name}: is not valid Python ({error}).") from error
        unknown = {module for module in imported if module not in IMPORTS | sys.stdlib_module_names}
        unknown |= {f".{module}" for module in neighbours if f"{module}.py" not in CODE_FILES}
        if unknown:
            raise HubError(
                f"{model / name}: imports {', '.join(sorted(unknown))}, which users may not have; import torch and "
                "transformers only."
            )


def check_report(model: Path, files: dict[str, dict[str, Any]]) -> list[str]:
    """Returns notes. Raises `HubError` if the report lists other weights than those of `files`."""
    file = model / REPORT_FILE
    if not file.exists():
        return [f"the folder has no {REPORT_FILE}: nothing says how the model was made, or from what"]
    model_part = read_json(file).get("model")
    listed = model_part.get("files") if isinstance(model_part, dict) else None
    if not isinstance(listed, dict):
        return [f"{REPORT_FILE} lists no hashes, so whether it speaks of these weights was not checked"]
    weights = {name for name in {**listed, **files} if is_one_of(name, WEIGHT_FILES)}
    if any(listed.get(name) != files.get(name) for name in weights):
        raise HubError(
            f"{file}: speaks of other weights than those that lie beside it: they have changed since. If you trained "
            "the model, save it to a folder of its own, without this report, and with a card that says so; otherwise "
            "convert again."
        )
    changed = [name for name in listed if files.get(name) != listed[name]]
    return [f"changed since the conversion: {', '.join(changed)}"] if changed else []


def check_secrets(model: Path, names: list[str]) -> None:
    """No text file holds a token of the Hub, whether the one in use or one that looks like it."""
    pattern = re.compile(r"\bhf_[A-Za-z]{34}\b" + (f"|{re.escape(token)}" if (token := get_token()) else ""))
    for name in names:
        if pattern.search((model / name).read_text(encoding="utf-8", errors="ignore")):
            raise HubError(f"{model / name}: holds an access token of the Hub; remove it first.")
