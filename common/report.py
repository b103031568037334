"""What results files and pages have in common: where and when something was measured, JSON, tables in Markdown."""

import json
import platform
import re
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

GENERATED = re.compile(r"(<!-- generated: (.+?) -->\n)[^<]*(<!-- end -->)")  # a table has no "<"


def heading(device: str, *packages: str) -> dict:
    """The first fields of every results file: date, device and versions, also of these packages."""
    versions = {name: version(name) for name in ("torch", "transformers", *packages)}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": {"type": device, "name": device_name(device), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), **versions},
    }


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write(path: Path, text: str) -> None:
    """The file is never half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def save(report: dict, path: Path) -> None:
    write(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def table(head: str, rows: list[list], rule: str = "---") -> str:
    """In Markdown, below a head such as "| model | loss |"."""
    lines = [head, "|" + f"{rule}|" * head.strip("|").count("|") + f"{rule}|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def fill(text: str, blocks: dict[str, Callable[[], str]]) -> str:
    """A page, what stands between `<!-- generated: NAME -->` and `<!-- end -->` in it made anew."""
    return GENERATED.sub(lambda match: match[1] + blocks[match[2]]() + "\n" + match[3], text)
