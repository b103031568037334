"""Where and when something was measured."""

import platform
from datetime import datetime, timezone
from pathlib import Path

import torch
import transformers


def heading(device: str) -> dict:
    """The first fields of every results file: date, device and versions."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": {"type": device, "name": device_name(device), "threads": torch.get_num_threads()},
        "versions": versions | {"transformers": transformers.__version__},
    }


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
