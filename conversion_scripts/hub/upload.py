"""
What of a folder is pushed to the Hub: a complete Nexus model, checked before anything is sent, and nothing else.
"""

import ast
import hashlib
import re
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, get_token

from ... import modeling_nexus
from ...configuration_nexus import AUTO_MAP, NexusConfig
from ...errors import ConversionError, reason_of
from ...tokenization import CARRIED_FILES
from ..checkpoint.output import REPORT_FILE
from ..checkpoint.plan import check_shape, shapes_of_model
from ..checkpoint.report import CARD_FILE
from ..checkpoint.shards import sha256
from ..checkpoint.source import INDEX_FILE, SINGLE_FILE, Checkpoint, check_links, read_json
from ..convert import CODE_FILES, ROOT
from ..progress import bytes_bar
from ..to_source import open_nexus
from .card import card_for_repository

# Besides the weights. Everything else stays here: what a training leaves behind is nobody's to publish by accident.
MODEL_FILES = (
    "config.json",
    CARD_FILE,
    REPORT_FILE,
    *CODE_FILES,
    *CARRIED_FILES,
    "additional_chat_templates/*.jinja",
)
LICENCE_FILES = ("LICENSE", "LICENSE.*", "NOTICE", "NOTICE.*")
WEIGHT_FILES = (SINGLE_FILE, INDEX_FILE, "model-*-of-*.safetensors")
AUTO_CLASSES = {reference.split(".")[-1]: auto_class for auto_class, reference in AUTO_MAP.items()}
IMPORTS = {"torch", "transformers", "huggingface_hub"}  # the last one comes with Transformers


@dataclass
class Upload:
    """
    What a push sends.

    Attributes:
        checkpoint, config: the model. auto_class: the one that loads it, by its architecture.
        files: name in the repository -> bytes and sha256. card: content of the one file that is not sent as it lies.
        left_out: what stays here. notes: what the user should know.
    """

    folder: Path
    checkpoint: Checkpoint
    config: NexusConfig
    auto_class: str
    card: bytes
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(description["bytes"] for description in self.files.values())

    def operation(self, name: str) -> CommitOperationAdd:
        content = self.card if name == CARD_FILE else self.folder / name
        return CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)


def prepare(folder: Path, repo_id: str) -> Upload:
    """Raises `ConversionError` unless `folder` is a complete Nexus model. Reads and hashes every file that is sent."""
    if not folder.is_dir():
        raise ConversionError(f"{folder}: no such folder.")
    checkpoint, config = open_nexus(folder)
    check_links(folder)
    if (folder / SINGLE_FILE).exists() and (folder / INDEX_FILE).exists():
        raise ConversionError(
            f"{folder}: has both {SINGLE_FILE} and {INDEX_FILE}. Which of them counts cannot be known; remove one."
        )
    architecture = check_architecture(checkpoint)
    check_code(folder)
    check_tensors(checkpoint, config, architecture)
    upload = Upload(folder, checkpoint, config, AUTO_CLASSES[architecture], card_for_repository(folder, repo_id))
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    shards = {file.name for file in checkpoint.files}
    patterns = (INDEX_FILE, *MODEL_FILES, *LICENCE_FILES)
    sent = [name for name in names if name in shards or matches(name, patterns)]
    upload.left_out = summary_of([name for name in names if name not in sent], sent)
    check_secrets(upload, [name for name in sent if name not in shards])
    with bytes_bar("hashing", sum((folder / name).stat().st_size for name in sent)) as advance:
        for name in sent:
            if name == CARD_FILE:
                upload.files[name] = {"bytes": len(upload.card), "sha256": hashlib.sha256(upload.card).hexdigest()}
            else:
                upload.files[name] = {
                    "bytes": (folder / name).stat().st_size,
                    "sha256": sha256(folder / name, advance),
                }
    check_report(upload, shards)
    if any(upload.files[name]["sha256"] != sha256(ROOT / name) for name in CODE_FILES):
        upload.notes.append(
            f"the code in the folder is not that of nexus-transformers {version('nexus-transformers')}, which is "
            "installed here"
        )
    if "tokenizer_config.json" not in sent:
        upload.notes.append("the folder has no tokenizer; whoever uses the model has to bring one")
    return upload


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def summary_of(stray: list[str], sent: list[str]) -> list[str]:
    """A folder of which nothing is sent is one entry."""
    folders = {name.split("/")[0] for name in sent if "/" in name}
    tops = [name if "/" not in name or name.split("/")[0] in folders else name.split("/")[0] + "/" for name in stray]
    return list(dict.fromkeys(tops))


def check_architecture(checkpoint: Checkpoint) -> str:
    """The class that the weights were saved from."""
    file, raw = checkpoint.folder / "config.json", checkpoint.raw_config
    architecture = (raw.get("architectures") or [None])[0]
    if architecture not in AUTO_CLASSES:
        raise ConversionError(
            f"{file}: architectures is {raw.get('architectures')!r}, none of {', '.join(AUTO_CLASSES)}."
        )
    auto_map = raw.get("auto_map")
    for auto_class, reference in AUTO_MAP.items():
        if not isinstance(auto_map, dict) or auto_map.get(auto_class) != reference:
            raise ConversionError(
                f"{file}: auto_map does not say that {auto_class} is {reference}, so nobody could load the model with "
                "it. Load the model and save it with save_pretrained, which writes the whole map."
            )
    return architecture


def check_code(folder: Path) -> None:
    """The code files are all there and import nothing that a user of Transformers does not have."""
    for name in CODE_FILES:
        try:
            tree = ast.parse((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConversionError(
                f"{folder}: lacks {name}, the code that loads the model. Load the model and save it with "
                "save_pretrained, which writes it."
            ) from None
        except (SyntaxError, ValueError) as error:
            raise ConversionError(f"{folder / name}: is not valid Python ({reason_of(error)}).") from error
        for node in ast.walk(tree):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            for module in imported:
                root = module.split(".")[0]
                if root not in IMPORTS | sys.stdlib_module_names and f"{root}.py" not in CODE_FILES:
                    raise ConversionError(
                        f"{folder / name}: imports {module!r} (line {node.lineno}), which users may not have; only "
                        "torch and transformers can be relied on."
                    )


def check_tensors(checkpoint: Checkpoint, config: NexusConfig, architecture: str) -> None:
    """Every tensor that the model has, and no other: Transformers would make up the one and drop the other."""
    model_class = getattr(modeling_nexus, architecture)
    expected = shapes_of_model(lambda: model_class(config), checkpoint)
    tied = set(model_class._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    for name, tensor in expected.items():
        if name in checkpoint.shapes:
            check_shape(checkpoint, name, tensor.new_empty(checkpoint.shapes[name]), tensor)
        elif name not in tied:
            raise ConversionError(f"{checkpoint.label}: lacks tensor {name!r}; the model is incomplete.")
    for name in checkpoint.shapes:
        if name not in expected:
            raise ConversionError(f"{checkpoint.label}: holds tensor {name!r}, which {architecture} does not have.")


def check_report(upload: Upload, shards: set[str]) -> None:
    """If a report lists the files, the weights must be those that it speaks of."""
    file = upload.folder / REPORT_FILE
    if not file.exists():
        upload.notes.append(f"the folder has no {REPORT_FILE}: nothing says how the model was made, or from what")
        return
    listed = (read_json(file).get("model") or {}).get("files")
    if not isinstance(listed, dict):
        upload.notes.append(f"{REPORT_FILE} lists no hashes, so whether it speaks of these weights was not checked")
        return
    weights = {name: description for name, description in listed.items() if matches(name, WEIGHT_FILES)}
    if weights != {name: upload.files[name] for name in upload.files if name in shards or name == INDEX_FILE}:
        raise ConversionError(
            f"{file}: speaks of other weights than those that lie beside it: they have changed since. If you trained "
            f"the model, save it to a folder of its own, without this report, and with a card that says so; otherwise "
            "convert again."
        )
    changed = [name for name in listed if name not in weights and upload.files.get(name) != listed[name]]
    if changed:
        upload.notes.append(f"changed since the conversion: {', '.join(changed)}")


def check_secrets(upload: Upload, names: list[str]) -> None:
    """No text file holds a token of the Hub, whether the one in use or one that looks like it."""
    pattern = re.compile(r"\bhf_[A-Za-z]{34}\b" + (f"|{re.escape(token)}" if (token := get_token()) else ""))
    for name in names:
        if pattern.search((upload.folder / name).read_text(encoding="utf-8", errors="ignore")):
            raise ConversionError(f"{upload.folder / name}: holds an access token of the Hub; remove it first.")
