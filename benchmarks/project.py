"""
Writes the figures of PROJECTION.md: what large nested models would need. `python -m benchmarks.project`

Counted operations and bytes (common/costs.py), what was measured of Nexus beside its bound
(results/speed_targets.json), and the assumptions below, all of which the page states. Nothing on the page was run.
"""

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from common import costs
from common.report import fill, table
from nexus_transformers import NexusConfig

from .speed_cases import QWEN, VARIANTS, WINDOW, Shape

FOLDER = Path(__file__).parent
PAGE = FOLDER / "PROJECTION.md"
BF16, FLOAT32 = 2, 4

# Assumptions. GPU: the vendor's figures of an H100 SXM, dense bf16.
GPU = {"name": "H100 SXM, 80 GB", "bytes": 80e9, "operations": 989e12, "bandwidth": 3.35e12}
USABLE = 0.9  # of the memory
TRAINING, PREFILL, DECODING = 0.40, 0.50, 0.60  # of the peak operations, operations, bandwidth
TOGETHER = {1: 1.0, 2: 0.95, 4: 0.95, 8: 0.90, 16: 0.85, 32: 0.85, 64: 0.80}  # efficiency of so many GPUs
STATE = 18  # bytes per parameter: float32 weights, gradients and Adam's two moments, bf16 weights; over all GPUs
LOGITS = 1024  # positions whose logits are in memory at once: the loss is taken in chunks

SHAPES = {  # Qwen2.5-1.5B, Qwen2.5-7B, Llama 3 70B
    "1.5B": QWEN,
    "7B": Shape(3584, 18944, 28, 28, 4, 152064, tie_word_embeddings=False),
    "70B": Shape(8192, 28672, 80, 64, 8, 128256, tie_word_embeddings=False),
}
NESTINGS = {"standard": VARIANTS["order 1"]}
NESTINGS |= {name: VARIANTS[name] for name in ("order 2", WINDOW, "order 2, queries only", "first layer only")}
LENGTHS = (8192, 32768, 131072)
GPUS = (1, 2, 4, 8, 16, 32, 64)


def config(model: str, nesting: str) -> NexusConfig:
    return SHAPES[model].nexus(NESTINGS[nesting])


@dataclass(frozen=True)
class Overhead:
    """Measured time over its bound at order 2, by task; 1 where nothing was measured."""

    train: float = 1.0
    prefill: float = 1.0
    decode: float = 1.0
    source: str = "none: run `python -m benchmarks.speed --preset targets` first; taken as 1.00"

    @classmethod
    def read(cls, path: Path) -> "Overhead":
        if not path.exists():
            return cls()
        report = json.loads(path.read_text())
        names = {"train": "order 2, training, checkpointed", "prefill": "order 2, prefill"}
        names["decode"] = "order 2, decoding"
        measured = {target["target"]: target.get("measured", 1.0) for target in report["targets"]}
        device = report["device"]
        source = f"SmolLM2's shape, float32, {device['name']}, {report['date'][:10]}; on a GPU not measured"
        return cls(**{task: measured.get(name, 1.0) for task, name in names.items()}, source=source)

    def of(self, task: str, nesting: str) -> float:
        """Only fully nested models carry it; a single nested layer of many does not show."""
        return getattr(self, task) if nesting.startswith("order") else 1.0


def activations(model: NexusConfig, tokens: float) -> float:
    """
    Bytes while training with activation checkpointing: the input of every layer, all that one layer makes (forward and
    gradients), and a chunk of logits with its gradient.
    """
    query, key_value = costs.widths(model)
    first = max(model.attention_calls(), key=len)
    features = {"query": 2 * query, "key": 2 * key_value, "value": key_value}
    calls = sum(features[branch] for call in first for branch in call.projects)
    kept = calls + len(first) * (query + 3 * model.hidden_size) + 4 * model.hidden_size + 4 * model.intermediate_size
    inputs = BF16 * tokens * model.num_layers * model.hidden_size
    return inputs + 2 * BF16 * tokens * kept + 2 * FLOAT32 * LOGITS * model.vocab_size


def training(model: NexusConfig, nesting: str, length: int, gpus: int, overhead: Overhead) -> str:
    """A cell: GPUs per sequence if more than one, bytes per GPU, hours per billion tokens; "-" if it does not fit."""
    layer = BF16 * 2 * costs.parameters(model) / model.num_layers  # gathered: one in use, one on its way
    for split in (number for number in GPUS if number <= gpus):
        needed = STATE * costs.parameters(model) / gpus + layer + activations(model, length / split)
        if needed <= USABLE * GPU["bytes"]:
            break
    else:
        return "-"
    operations = costs.flops(model, 1, length, training=True, checkpointed=True)["total"] / length
    speed = gpus * GPU["operations"] * TRAINING * TOGETHER[gpus] / overhead.of("train", nesting)
    hours = 1e9 * operations / speed / 3600
    return f"{needed / 1e9:.0f} GB{f' /{split}' if split > 1 else ''}, {hours:.3g} h"


def serving(model: NexusConfig, nesting: str, length: int, gpus: int, overhead: Overhead) -> list[str]:
    """Cells: sequences that fit at once, first token after, tokens/s of one sequence, tokens/s of all together."""
    weights = BF16 * costs.parameters(model)
    cache = costs.cache_bytes(model, 1, length, BF16)
    sequences = int((USABLE * GPU["bytes"] * gpus - weights) // cache)
    if sequences < 1:
        return ["-"] * 4
    prefill = costs.flops(model, 1, length, logits=1)["total"] * overhead.of("prefill", nesting)
    first = prefill / (gpus * GPU["operations"] * PREFILL * TOGETHER[gpus])
    bandwidth = gpus * GPU["bandwidth"] * DECODING * TOGETHER[gpus] / overhead.of("decode", nesting)
    alone = bandwidth / costs.bytes_read(model, 1, length, BF16)["total"]
    batch = min(sequences, 256)  # beyond it products, not reading, set the pace
    together = batch * bandwidth / costs.bytes_read(model, batch, length, BF16)["total"]
    return [str(sequences), f"{first:.2g} s", f"{alone:.0f}", f"{together:.0f} ({batch})"]


def page(overhead: Overhead) -> str:
    """PROJECTION.md, with its figures made anew."""
    trained, served = [], []
    for model, length, nesting in itertools.product(SHAPES, LENGTHS, NESTINGS):
        each, names = config(model, nesting), [model, nesting, f"{length // 1024}k"]
        trained.append(names + [training(each, nesting, length, gpus, overhead) for gpus in GPUS])
        cache = f"{costs.cache_bytes(each, 1, length, BF16) / 1e9:.2f} GB"
        cells = [cell for gpus in (1, 8) for cell in serving(each, nesting, length, gpus, overhead)]
        served.append([*names, cache, *cells])
    columns = [f"{name}, {gpus} GPU" for gpus in (1, 8) for name in ("fit", "first token", "alone", "batch")]
    head = "| model | nesting | tokens |"
    blocks = {
        "assumptions": assumptions,
        "measured": lambda: (
            f"Time over its bound at order 2 ({overhead.source}):\ntraining {overhead.train:.3f}, "
            f"prefill {overhead.prefill:.3f}, decoding {overhead.decode:.3f}."
        ),
        "training": lambda: table(f"{head} {' | '.join(f'{gpus} GPU' for gpus in GPUS)} |", trained, " --- "),
        "serving": lambda: table(f"{head} cache | {' | '.join(columns)} |", served, " --- "),
    }
    return fill(PAGE.read_text(encoding="utf-8"), blocks)


def assumptions() -> str:
    gpu = f"{GPU['name']}, {GPU['operations'] / 1e12:.0f} TFLOP/s in bf16, {GPU['bandwidth'] / 1e12:.2f} TB/s"
    together = ", ".join(f"{TOGETHER[gpus]:.0%} of {gpus}" for gpus in (2, 8, 64))
    shapes = ", ".join(f"{name} {costs.parameters(config(name, 'standard')) / 1e9:.2f}B" for name in SHAPES)
    return f"""\
- GPU: {gpu} (the vendor's figures); {USABLE:.0%} of its memory is usable.
- Of that peak, training gets {TRAINING:.0%} and prefill {PREFILL:.0%}; decoding gets {DECODING:.0%} of the bandwidth.
- GPUs working together have a part of their sum: {together}.
- Training: {STATE} bytes per parameter (float32 weights, gradients and Adam's two moments, bf16 weights), sharded over
  all GPUs; activation checkpointing; the loss in chunks of {LOGITS} positions. One sequence per GPU, or, where it does
  not fit, split over as many GPUs as stated (context parallelism: no code and no test of it in this repository).
- Parameters: {shapes} (Qwen2.5-1.5B, Qwen2.5-7B, Llama 3 70B)."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.project", description=__doc__)
    parser.add_argument("--measured", type=Path, default=FOLDER / "results" / "speed_targets.json")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    options.out.write_text(page(Overhead.read(options.measured)))
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
