"""
Memory and throughput of `nexus convert` on a large checkpoint, beside `cp` of the same files.

A Llama of random bfloat16 weights is written layer by layer, 8.6 GB in shards of 2 GB by default. Then, interleaved and
repeated, the same bytes are copied with `cp` and converted with `nexus convert --no-verify`, each to a new place on the
same disk, after the source was dropped from the page cache; once the conversion is killed half-way and continued; and
once it verifies, layer by layer. Peak memory is the kernel's high-water mark of the process, which counts mapped pages
of the source as well.

usage: python -m benchmarks.conversion [--gigabytes 8.6] [--repeats 3] [--folder DIR] [--no-verify]
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from common import costs
from common.report import heading, save

NEXUS = Path(sys.executable).with_name("nexus")
RESULTS = Path(__file__).parent / "results" / "conversion.json"
SHAPE = {  # of Llama-3-8B, but for the number of layers
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def make_checkpoint(folder: Path, gigabytes: float) -> dict:
    """Random weights, shard by shard. Returns the size in bytes, the number of shards and the largest tensor."""
    embeddings = 2 * SHAPE["vocab_size"] * SHAPE["hidden_size"]
    layer = costs.parameters(LlamaConfig(**SHAPE, num_hidden_layers=1)) - embeddings
    layers = max(1, round((gigabytes * 1e9 / 2 - embeddings) / layer))
    config = LlamaConfig(**SHAPE, num_hidden_layers=layers, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        tensors = LlamaForCausalLM(config).to(torch.bfloat16).state_dict()
    layout = split_torch_state_dict_into_shards(tensors, max_shard_size="2GB")
    generator = torch.Generator().manual_seed(0)
    for file, names in layout.filename_to_tensors.items():
        shard = {
            name: torch.empty(tensors[name].shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name in names
        }
        save_file(shard, folder / file, metadata={"format": "pt"})
    index = {"metadata": layout.metadata, "weight_map": layout.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return {
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "shards": len(layout.filename_to_tensors),
        "layers": layers,
        "largest_tensor_bytes": max(tensor.nbytes for tensor in tensors.values()),
    }


def run(*command: str | Path) -> tuple[float, int]:
    """
    Seconds until all is on the disk, and the peak memory in bytes of the process. Its high-water mark is polled:
    ru_maxrss would begin with that of this process.
    """
    print(*command, flush=True)
    start, memory = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with contextlib.suppress(OSError, TypeError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
        time.sleep(0.02)
    os.sync()
    if process.returncode != 0:
        sys.exit(f"failed with status {process.returncode}")
    return time.perf_counter() - start, memory


def forget(folder: Path) -> None:
    """Drops its files from the page cache: what reads them next reads them from the disk."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def start_up_seconds() -> float:
    """Of `nexus convert` on a tiny model: imports and little else."""
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
        LlamaForCausalLM(config).save_pretrained(f"{folder}/tiny")
        return run(NEXUS, "convert", f"{folder}/tiny", f"{folder}/out", "--no-verify")[0]


def interrupted(source: Path, out: Path) -> dict:
    """Killed when half of the shards are there, then run again: seconds, and how many shards were kept."""
    command = [NEXUS, "convert", source, out, "--no-verify", "--max-shard-size", "2GB", "--json"]
    process = subprocess.Popen(command)
    finished = out.parent / f".{out.name}.incomplete" / "model"
    while len(list(finished.glob("*.safetensors"))) < 2:
        if process.poll() is not None:
            sys.exit("the conversion ended before it could be killed")
        time.sleep(0.05)
    process.kill()
    process.wait()
    start = time.perf_counter()
    report = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "kept": len(report["resumed"]), "of": len(report["model"]["shards"])}


def measure(place: Path, gigabytes: float, repeats: int, verify: bool) -> dict:
    source, copy, out = place / "source", place / "copy", place / "out"
    checkpoint = make_checkpoint(source, gigabytes)
    start_up = statistics.median(start_up_seconds() for _ in range(3))
    rounds = []
    for _ in range(repeats):
        forget(source)
        copied, _ = run("cp", "-r", source, copy)
        shutil.rmtree(copy)
        forget(source)
        converted, memory = run(NEXUS, "convert", source, out, "--no-verify")
        shutil.rmtree(out)
        rounds.append({"cp_seconds": copied, "convert_seconds": converted, "peak_memory_bytes": memory})
    resumed, verified = interrupted(source, out), {}
    if verify:
        seconds, _ = run(NEXUS, "verify", source, out, "--layer-by-layer")
        figures = json.loads((out / "conversion_report.json").read_text())["verification"]
        names = ("max_abs_logit_difference", "positions", "peak_memory_bytes")
        verified = {"verified_layer_by_layer": {"seconds": seconds} | {name: figures[name] for name in names}}
    return heading("cpu", "nexus-transformers", "safetensors") | {
        "checkpoint": checkpoint,
        "start_up_seconds": start_up,
        "rounds": rounds,
        "cp_bytes_per_second": checkpoint["bytes"] / statistics.median(each["cp_seconds"] for each in rounds),
        "convert_bytes_per_second": checkpoint["bytes"] / statistics.median(each["convert_seconds"] for each in rounds),
        "throughput_to_cp": statistics.median(each["cp_seconds"] / each["convert_seconds"] for each in rounds),
        "peak_memory_bytes": max(each["peak_memory_bytes"] for each in rounds),
        "memory_goal_bytes": 10**9 + checkpoint["largest_tensor_bytes"],
        "resumed": resumed,
        **verified,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8.6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where there is room for three times the size")
    parser.add_argument("--no-verify", action="store_true", help="where bfloat16 is slow, verifying takes half an hour")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="nexus-benchmark-") as place:
        results = measure(Path(place), options.gigabytes, options.repeats, not options.no_verify)
    save(results, RESULTS)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
