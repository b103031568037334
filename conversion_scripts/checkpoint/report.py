"""
conversion_report.json: what was made of what, by which versions, with every hash and figure. The model card, a resumed
conversion and the upload are all made from it.
"""

import json
import platform
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...tokenization.carry_over import CARRIED_FILES, CHAT_TEMPLATES
from ..progress import bytes_bar
from .added import is_gate, is_nesting
from .files import (
    CARD_FILE,
    INDEX_FILE,
    LEFT_BY_A_KILL,
    REPORT_FILE,
    is_complete,
    is_gguf,
    is_licence,
    is_one_of,
    licences,
    read_json,
    sha256,
)
from .output import Resume
from .place import free_space
from .shards import Planned, shard_layout, total_bytes
from .weights import Checkpoint

SOURCE_FILES = ("config.json", INDEX_FILE, *CARRIED_FILES)


def start_report(
    opened: Checkpoint, options: dict[str, Any], command: list[str] | None, files: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What is known before the result is. `files`: from `hash_source`."""
    return {
        "nexus_transformers": version("nexus-transformers"),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "options": options,
        "environment": environment(),
        "source": {
            **describe_source(opened),
            "dtype": str(opened.dtype).removeprefix("torch."),
            "config": opened.raw_config,
            "files": files,
        },
    }


def describe_source(opened: Checkpoint) -> dict[str, Any]:
    return {
        "name": opened.label,
        "revision": opened.revision,
        "model_type": opened.raw_config.get("model_type"),
        "parameters": opened.parameters,
        "language_model_of": getattr(opened, "wrapper", None),
    }


def parameters(plan: dict[str, Planned]) -> int:
    return sum(planned.tensor.numel() for planned in plan.values())


def added_parameters(plan: dict[str, Planned]) -> dict[str, int]:
    """What the result has beyond its source: gates, and the weights of inner layers."""
    added = {name: planned for name, planned in plan.items() if is_nesting(name)}
    gates = parameters({name: planned for name, planned in added.items() if is_gate(name)})
    return {"gates": gates, "inner_parameters": parameters(added) - gates}


def environment() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "transformers", "safetensors", "huggingface-hub")}
    return {"python": platform.python_version(), "platform": platform.platform(), **packages}


def source_files(opened: Checkpoint) -> dict[str, Path]:
    """By their paths in the folder: the weights, and what is read or carried over beside them."""
    others = licences(opened.folder)
    if not is_gguf(opened.files[0]):  # beside which the files are of other models
        others += [opened.folder / name for name in SOURCE_FILES] + sorted(opened.folder.glob(CHAT_TEMPLATES))
    files = dict.fromkeys([*opened.files, *filter(Path.is_file, others)])
    return {file.relative_to(opened.folder).as_posix(): file for file in files}


def source_bytes(opened: Checkpoint) -> int:
    return sum(file.stat().st_size for file in source_files(opened).values())


def hash_source(opened: Checkpoint, advance: Callable[[int], None]) -> dict[str, dict[str, Any]]:
    """
    File name -> bytes and sha256. Raises `CheckpointError` if a file from the Hub is not what the Hub said it is: its
    cache names large files by their hash.
    """
    described = {}
    for name, file in source_files(opened).items():
        described[name] = {"bytes": file.stat().st_size, "sha256": sha256(file, advance)}
        blob = file.resolve().name
        if opened.revision and len(blob) == 64 and blob != described[name]["sha256"]:
            raise CheckpointError(
                f"{opened.label}: the downloaded {name} is damaged (its sha256 is not the Hub's). Delete "
                f"{file.resolve()} and convert again."
            )
    return described


def describe_files(folder: Path, resume: Resume) -> dict[str, dict[str, Any]]:
    """Every file of the result but report and card, which are written last, with bytes and sha256."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return {
        name: resume.shards.get(name) or {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in names
    }


def state_of(opened: Checkpoint, plan: dict[str, Planned], options: dict[str, Any]) -> dict[str, Any]:
    """What decides the bytes of the shards: an interrupted run is continued only by one for which this is the same."""
    state = {
        "nexus_transformers": version("nexus-transformers"),
        "options": options,
        "source": [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in opened.files],
        "tensors": [[name, str(planned.tensor.dtype), list(planned.tensor.shape)] for name, planned in plan.items()],
    }
    return json.loads(json.dumps(state))  # as it will be read again


def finished_report(out: Path, opened: Checkpoint, options: dict[str, Any]) -> dict[str, Any] | None:
    """The report of `out` if `out` is, file by file, what converting `opened` with `options` would write; else None."""
    try:
        report = read_json(out / REPORT_FILE)
        files, made_of = report["model"]["files"], report["source"]["files"]
        same = report["options"] == json.loads(json.dumps(options))
        same = same and report["nexus_transformers"] == version("nexus-transformers")
        described = describe_source(opened)
        if opened.revision is None:  # a path may be spelled otherwise; the hashes tell
            del described["name"]
        same = same and described.items() <= report["source"].items()
        same = same and {name: file.stat().st_size for name, file in source_files(opened).items()} == {
            name: description["bytes"] for name, description in made_of.items()
        }
        same = same and all(is_described(each) for each in (*files.values(), *made_of.values()))
        same = same and all(isinstance(value, int | str) for value in printed(report))
    except (CheckpointError, KeyError, TypeError, AttributeError):
        return None  # no report, or one of another version, or one that somebody has edited
    if not same:
        return None
    present = {file.relative_to(out) for file in out.rglob("*") if file.is_file() and not file.match(LEFT_BY_A_KILL)}
    if {str(file) for file in present} - {REPORT_FILE, CARD_FILE} != set(files):
        return None
    total = source_bytes(opened) + sum(description["bytes"] for description in files.values())
    with bytes_bar("checking", total) as advance:
        if hash_source(opened, advance) != made_of:
            return None
        for name, description in files.items():
            if not is_complete(out / name, description):
                return None
            advance(description["bytes"])
    return report


def printed(report: dict[str, Any]) -> list[Any]:
    """What is printed of every report."""
    model = report["model"]
    added = [model[name] for name in ("gates", "inner_parameters")] if "attention_order" in model else []
    return [report["source"]["name"], model["parameters"], model["bytes"], model["dtype"], *added]


def is_described(file: dict[str, Any]) -> bool:
    return type(file["bytes"]) is int and isinstance(file["sha256"], str)


def describe_plan(
    out: Path, opened: Checkpoint, plan: dict[str, Planned], options: dict[str, Any], licence: str | None
) -> dict[str, Any]:
    """What a conversion would do, for --dry-run. `licence`: what the source's card states."""
    travel = [*CARRIED_FILES, CHAT_TEMPLATES]
    carried = [name for name in source_files(opened) if is_one_of(name, travel) or is_licence(name)]
    used = {name.split("/")[0] for name in source_files(opened)} | {CARD_FILE}
    unknown = [] if licence else ["the licence of the source"]
    if "tokenizer_config.json" not in carried and not is_gguf(opened.files[0]):
        unknown.append("its tokenizer")
    return {
        "dry_run": True,
        "options": options,
        "source": {
            **describe_source(opened),
            "bytes": sum(file.stat().st_size for file in opened.files),
            "shards": len(opened.files),
        },
        "model": {
            "parameters": parameters(plan),
            **added_parameters(plan),
            "bytes": total_bytes(plan),
            "shards": len(shard_layout(plan, options["max_shard_size"]).filename_to_tensors),
        },
        "memory": memory_needed(opened, plan),
        "disk": {"needed_bytes": total_bytes(plan), "free_bytes": free_space(out)},
        "carried_over": carried,
        "left_behind": sorted(file.name for file in opened.folder.iterdir() if file.name not in used),
        "unknown": unknown,
    }


def memory_needed(opened: Checkpoint, plan: dict[str, Planned]) -> str:
    if is_gguf(opened.files[0]):
        return f"a GGUF file is read whole, as float32: {total_bytes(plan) / 1e9:.2f} GB"
    largest = max(planned.tensor.nbytes for planned in plan.values())
    return f"one tensor at a time: under 1 GB and the largest tensor ({largest / 1e9:.2f} GB), without verification"
