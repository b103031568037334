"""
Memory and throughput of `nexus convert` on a large checkpoint, beside `cp` of the same files.

A Llama of random bfloat16 weights is written layer by layer, 8.6 GB in shards of 2 GB by default. Then, interleaved and
repeated, the same bytes are copied with `cp` and converted with `nexus convert --no-verify`, each to a new place on the
same disk; once the conversion is killed half-way and continued; and once it verifies, layer by layer. Peak memory is
the kernel's high-water mark of the process, which counts mapped pages of the source as well.

usage: python -m benchmarks.conversion [--gigabytes 8.6] [--repeats 3] [--no-verify] [--folder DIR]
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

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
PARAMETERS_PER_LAYER = 218_112_000
PARAMETERS_OUTSIDE = 2 * 128256 * 4096 + 4096


def make_checkpoint(folder: Path, gigabytes: float) -> dict:
    """Random weights, shard by shard. Returns the size in bytes, the number of shards and the largest tensor."""
    layers = max(1, round((gigabytes * 1e9 / 2 - PARAMETERS_OUTSIDE) / PARAMETERS_PER_LAYER))
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


def run(command: list) -> tuple[float, int | None]:
    """
    Seconds until all is on the disk, and the peak memory in bytes of the process where Linux tells it. Its high-water
    mark is polled: ru_maxrss would begin with that of this process.
    """
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    memory = None
    while process.poll() is None:
        with contextlib.suppress(OSError, TypeError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
        time.sleep(0.02)
    os.sync()
    if process.returncode != 0:
        raise SystemExit(f"{command}: failed with status {process.returncode}")
    return time.perf_counter() - start, memory


def start_up_seconds() -> float:
    """Of `nexus convert` on a tiny model: imports and little else."""
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
        LlamaForCausalLM(config).save_pretrained(f"{folder}/tiny")
        return run([nexus(), "convert", f"{folder}/tiny", f"{folder}/out", "--no-verify"])[0]


def nexus() -> Path:
    return Path(sys.executable).with_name("nexus")


def interrupted(source: Path, out: Path) -> dict:
    """Killed when half of the shards are there, then run again: seconds, and how many shards were kept."""
    process = subprocess.Popen([nexus(), "convert", source, out, "--no-verify", "--max-shard-size", "2GB"])
    finished = out.parent / f".{out.name}.incomplete" / "model"
    while len(list(finished.glob("*.safetensors"))) < 2:
        if process.poll() is not None:
            raise SystemExit("the conversion ended before it could be killed")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    start = time.perf_counter()
    command = [nexus(), "convert", source, out, "--no-verify", "--max-shard-size", "2GB", "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return {
        "seconds": time.perf_counter() - start,
        "kept": len(report["resumed"]),
        "of": len(report["model"]["shards"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8.6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-verify", action="store_true", help="leave out the verification, layer by layer")
    parser.add_argument("--folder", type=Path, help="where there is room for three times the size")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="nexus-benchmark-") as place:
        results = measure(Path(place), arguments)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(results, indent=2) + "\n")
    show(results)


def measure(place: Path, arguments: argparse.Namespace) -> dict:
    console = Console(stderr=True)
    source, copy, out = place / "source", place / "copy", place / "out"
    console.print(f"making a checkpoint of {arguments.gigabytes} GB …")
    checkpoint = make_checkpoint(source, arguments.gigabytes)
    start_up = statistics.median(start_up_seconds() for _ in range(3))
    rounds = []
    for number in range(arguments.repeats):
        console.print(f"copying and converting, {number + 1} of {arguments.repeats} …")
        copied, _ = run(["cp", "-r", source, copy])
        shutil.rmtree(copy)
        converted, memory = run([nexus(), "convert", source, out, "--no-verify"])
        shutil.rmtree(out)
        rounds.append({"cp_seconds": copied, "convert_seconds": converted, "peak_memory_bytes": memory})
    console.print("killing a conversion and continuing it …")
    resumed = interrupted(source, out)
    verified = None
    if not arguments.no_verify:
        console.print("verifying, layer by layer …")
        seconds, memory = run([nexus(), "verify", source, out, "--layer-by-layer"])
        figures = json.loads((out / "conversion_report.json").read_text())["verification"]
        verified = {"seconds": seconds, "peak_memory_bytes": memory} | {
            name: figures[name] for name in ("max_abs_logit_difference", "positions", "peak_memory_bytes")
        }
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "platform": platform.platform()},
        "versions": {name: version(name) for name in ("nexus-transformers", "torch", "transformers", "safetensors")},
        "checkpoint": checkpoint,
        "start_up_seconds": start_up,
        "rounds": rounds,
        "cp_bytes_per_second": checkpoint["bytes"] / statistics.median(each["cp_seconds"] for each in rounds),
        "convert_bytes_per_second": checkpoint["bytes"] / statistics.median(each["convert_seconds"] for each in rounds),
        "throughput_to_cp": statistics.median(each["cp_seconds"] / each["convert_seconds"] for each in rounds),
        "peak_memory_bytes": max(each["peak_memory_bytes"] for each in rounds),
        "memory_goal_bytes": 10**9 + checkpoint["largest_tensor_bytes"],
        "resumed": resumed,
        "verified_layer_by_layer": verified,
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def show(results: dict) -> None:
    checkpoint = results["checkpoint"]
    table = Table("what", "measured", title=f"{checkpoint['bytes'] / 1e9:.2f} GB in {checkpoint['shards']} shards")
    table.add_row("cp", f"{results['cp_bytes_per_second'] / 1e6:.0f} MB/s")
    table.add_row(
        "nexus convert --no-verify, hashing included", f"{results['convert_bytes_per_second'] / 1e6:.0f} MB/s"
    )
    table.add_row("throughput, as a share of cp's", f"{results['throughput_to_cp']:.2f}")
    memory, goal = results["peak_memory_bytes"], results["memory_goal_bytes"]
    table.add_row("peak memory (1 GB and the largest tensor)", f"{memory / 1e9:.2f} GB ({goal / 1e9:.2f} GB)")
    resumed = results["resumed"]
    table.add_row(
        "killed and continued", f"{resumed['kept']} of {resumed['of']} shards kept, {resumed['seconds']:.0f} s"
    )
    if verified := results["verified_layer_by_layer"]:
        table.add_row(
            "verified layer by layer",
            f"{verified['seconds']:.0f} s, {verified['peak_memory_bytes'] / 1e9:.2f} GB, "
            f"max |Δlogit| {verified['max_abs_logit_difference']}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
