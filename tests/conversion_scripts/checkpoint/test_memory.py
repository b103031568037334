"""Memory does not grow with the model: one tensor at a time. benchmarks/conversion.py measures a large one."""

import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints

WIDE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "head_dim": 64}
# The kernel's high-water mark of the process, set back before each step. ru_maxrss will not do: it begins with that of
# the parent.
CONVERT = """
import re, sys
from pathlib import Path
from safetensors.torch import load_file
from nexus_transformers.conversion_scripts.convert import convert

def peak(step):
    Path("/proc/self/clear_refs").write_text("5")
    step()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

small, large, out = sys.argv[1:]
print(peak(lambda: convert(small, out + "/small", verify=False)))
print(peak(lambda: convert(large, out + "/large", verify=False)))
print(peak(lambda: [tensor.clone() for tensor in load_file(large + "/model.safetensors").values()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the high-water mark that Linux keeps")
def test_memory_does_not_grow_with_the_model(tmp_path):
    small = checkpoints.llama(tmp_path / "small", **WIDE, num_hidden_layers=1)
    large = checkpoints.llama(tmp_path / "large", **WIDE, num_hidden_layers=8)
    size = (large / "model.safetensors").stat().st_size
    assert size > 450e6
    command = [sys.executable, "-c", CONVERT, small, large, tmp_path / "out"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    base, converted, read = map(int, output.split())
    assert converted - base < 0.15 * size
    assert read - base > 0.8 * size, "the measurement sees nothing"
