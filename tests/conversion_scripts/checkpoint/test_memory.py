"""Memory does not grow with the model: one tensor at a time. benchmarks/conversion.py measures a large one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints

WIDE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "head_dim": 64}
# The kernel's high-water mark of the process. ru_maxrss will not do: it begins with that of the parent.
CONVERT = """
import sys
from nexus_transformers.conversion_scripts.convert import convert
source, out, whole = sys.argv[1:]
convert(source, out, verify=False)
if whole == "True":
    from safetensors.torch import load_file
    held = {name: tensor.clone() for name, tensor in load_file(source + "/model.safetensors").items()}
print(open("/proc/self/status").read())
"""


def peak_memory(source: Path, out: Path, whole: bool = False) -> int:
    """Of a conversion in a process of its own, in bytes; with `whole` it then reads the model into memory."""
    command = [sys.executable, "-c", CONVERT, source, out, str(whole)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"VmHWM:\s+(\d+) kB", output)[1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the high-water mark that Linux keeps")
def test_memory_does_not_grow_with_the_model(tmp_path):
    small = checkpoints.llama(tmp_path / "small", **WIDE, num_hidden_layers=1)
    large = checkpoints.llama(tmp_path / "large", **WIDE, num_hidden_layers=8)
    size = (large / "model.safetensors").stat().st_size
    assert size > 450e6
    base = peak_memory(small, tmp_path / "small-out")
    assert peak_memory(large, tmp_path / "out") - base < 0.15 * size
    assert peak_memory(large, tmp_path / "other-out", whole=True) - base > 0.8 * size, "the measurement sees nothing"
