"""
Tokenize text and cut it into rows of equal length, once, for all runs: standard and nested then train on the same rows.

    python -m experiments.paper.pack SOURCE OUT --tokenizer EleutherAI/pythia-70m --tokens 15.1e9

SOURCE is a .txt, .jsonl or .parquet file (also compressed), a folder of such files of one kind, or a dataset of the
Hub, of which no more is downloaded than `--tokens` needs. Documents follow each other, an end-of-text token after each,
and are cut wherever a row is full, as in the Pythia suite; attention crosses from one document to the next in a row.

OUT is a folder of `datasets` with "train" and "validation" (the first rows), the tokenizer, and pack.json, which says
where it came from. It appears when it is complete.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset
from datasets.exceptions import DatasetNotFoundError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

KINDS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def documents(source: str, config: str | None, split: str, column: str) -> Iterator[str]:
    """The texts of a file, a folder or a dataset of the Hub, in its order."""
    if Path(source).exists():
        root = Path(source)
        files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
        kinds = {KINDS.get(next((end for end in file.suffixes if end in KINDS), "")) for file in files}
        if len(kinds) != 1 or kinds == {None}:
            sys.exit(f"pack: {source} must hold files of one kind of {', '.join(KINDS)}, and has none or several.")
        options = {"sample_by": "document"} if kinds == {"text"} else {}
        rows = load_dataset(
            kinds.pop(), data_files=[str(file) for file in files], streaming=True, split="train", **options
        )
    elif Path(source).suffix in KINDS or source.startswith((".", "/")):
        sys.exit(f"pack: {source} does not exist.")
    else:
        try:
            rows = load_dataset(source, config, streaming=True, split=split)
        except (DatasetNotFoundError, ConnectionError, ValueError) as error:
            sys.exit(f"pack: {source} cannot be had from the Hub: {str(error).splitlines()[0]}")
    for row in rows:
        if column not in row:
            sys.exit(f"pack: {source} has no column {column!r}, only {', '.join(row)}; choose one with --column.")
        yield row[column]


def cut(texts: Iterator[str], tokenizer: PreTrainedTokenizerBase, length: int, rows: int | None) -> Iterator[dict]:
    """Rows of `length` tokens, at most `rows` of them. What is left at the end and fills no row is dropped."""
    made, rest = 0, []
    while group := list(islice(texts, 1000)):  # tokenized at once, on all cores
        for ids in tokenizer(group, add_special_tokens=False)["input_ids"]:
            rest += ids
            rest.append(tokenizer.eos_token_id)
        for start in range(0, len(rest) - length + 1, length):
            if made == rows:
                return
            made += 1
            yield {"input_ids": rest[start : start + length]}
        rest = rest[len(rest) - len(rest) % length :]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m experiments.paper.pack", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", required=True, help="a Hub id or a folder")
    parser.add_argument("--length", type=int, default=2048, help="tokens per row")
    parser.add_argument("--tokens", type=float, help="stop after so many; by default all")
    parser.add_argument("--validation", type=int, default=1024, help="rows that are never trained on")
    parser.add_argument("--column", default="text")
    parser.add_argument("--config", help="of a dataset of the Hub that has several")
    parser.add_argument("--split", default="train", help="of a dataset of the Hub")
    options = parser.parse_args(arguments)
    for name in ("length", "validation"):
        if getattr(options, name) < 1:
            sys.exit(f"pack: --{name} {getattr(options, name)}: give 1 or more.")
    if options.out.exists():
        sys.exit(f"pack: {options.out} exists; delete it, or choose another folder.")
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    if tokenizer.eos_token_id is None:
        sys.exit(f"pack: the tokenizer {options.tokenizer} has no end-of-text token to put between documents.")

    unfinished = options.out.with_name(options.out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    limit = None if options.tokens is None else int(options.tokens // options.length) + options.validation
    width = "uint16" if len(tokenizer) <= 1 << 16 else "int32"  # half the disk

    def make() -> Iterator[dict]:
        texts = documents(options.source, options.config, options.split, options.column)
        return cut(texts, tokenizer, options.length, limit)

    rows = []
    if next(make(), None) is not None:  # `datasets` cannot make an empty one
        rows = Dataset.from_generator(
            make,
            features=Features({"input_ids": List(Value(width), length=options.length)}),
            cache_dir=str(unfinished / "cache"),
        )
    if len(rows) <= options.validation:
        shutil.rmtree(unfinished, ignore_errors=True)
        sys.exit(
            f"pack: {options.source} gives {len(rows)} rows of {options.length} tokens, of which {options.validation} "
            "would be for validation; give more text, or lower --length or --validation."
        )
    train = rows.select(range(options.validation, len(rows)))
    DatasetDict({"train": train, "validation": rows.select(range(options.validation))}).save_to_disk(unfinished)
    tokenizer.save_pretrained(unfinished / "tokenizer")
    shutil.rmtree(unfinished / "cache")
    facts = {
        "source": Path(options.source).name if Path(options.source).exists() else options.source,
        "config": options.config,
        "split": options.split,
        "tokenizer": Path(options.tokenizer).name if Path(options.tokenizer).exists() else options.tokenizer,
        "length": options.length,
        "rows": len(train),
        "validation_rows": options.validation,
    }
    (unfinished / "pack.json").write_text(json.dumps(facts, indent=2) + "\n")
    unfinished.rename(options.out)
    print(f"pack: {len(train)} rows of {options.length} tokens ({len(train) * options.length:,}) in {options.out}")


if __name__ == "__main__":
    main()
