"""
Carrying a source's tokenizer over, byte for byte. A Nexus model has its source's vocabulary, so its tokenizer *is* its
source's: no class of our own, nothing parsed and written again, nothing to get wrong.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..bounded import bounded, step
from ..errors import TokenizerError, told_as

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
CARRIED_FILES = (*TOKENIZER_FILES, "generation_config.json")
CHAT_TEMPLATES = "additional_chat_templates/*.jinja"


def carry_over_tokenizer(source: Path, target: Path) -> list[str]:
    """
    Copies every tokenizer file, chat template and the generation config that `source` has into `target`, unchanged.
    Returns the names of what was copied, relative to the folder; empty if the source has none.
    """
    carried = []
    for name in CARRIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
            carried.append(name)
    for file in sorted(file for file in source.glob(CHAT_TEMPLATES) if file.is_file()):
        name = file.relative_to(source)
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target / name)
        carried.append(str(name))
    return carried


def keep_tokenizer_class(source: Path, target: Path) -> str | None:
    """
    Transformers chooses the class of some tokenizers by the model_type beside them, whatever their own files say
    (Qwen2's), and so would choose another one beside a Nexus config. Then the class is written into `target`'s
    tokenizer_config.json, the one change to a carried file. Returns the class if that was needed.
    """
    file = target / "tokenizer_config.json"
    if not has_tokenizer(target):
        return None
    expected, actual = (bounded(class_of, folder, raises=TokenizerError) for folder in (source, target))
    if expected in (None, actual):
        return None
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    config["tokenizer_class"] = expected
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    file.write_bytes(text.encode(errors="backslashreplace"))  # half a surrogate, as JSON escapes it
    return expected


def has_tokenizer(folder: Path) -> bool:
    """A chat template alone is none."""
    return any((folder / name).exists() for name in TOKENIZER_FILES if not name.startswith("chat_template"))


def class_of(folder: Path) -> str | None:
    """None if it cannot be loaded, as where nothing beside it says of which class it is."""
    step(f"{tokenizer_file(folder)}: loading this tokenizer")
    try:
        return type(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)).__name__
    except Exception:  # the libraries have exceptions of their own
        return None


def tokenizer_file(folder: Path) -> Path:
    """The file that says most of a tokenizer, for messages."""
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), folder)


@contextmanager
def alone(file: Path) -> Iterator[Path]:
    """A folder with a link to this file only: beside a GGUF file, Transformers reads files of other models."""
    with tempfile.TemporaryDirectory(prefix="nexus-gguf-") as folder:
        (Path(folder) / file.name).symlink_to(file.resolve())
        yield Path(folder)


def rebuild_gguf_tokenizer(file: Path, target: Path) -> list[str]:
    """
    A GGUF file holds the vocabulary, the merges and the chat template in a form of its own; Transformers rebuilds the
    tokenizer from it. Returns the names of the files written to `target`.
    """
    with alone(file) as folder:
        return bounded(rebuild, file, folder, target, raises=TokenizerError)


def rebuild(file: Path, folder: Path, target: Path) -> list[str]:
    step(f"{file}: rebuilding its tokenizer")
    failure = f"{file}: Transformers cannot read its tokenizer ({{reason}}). Convert the original "
    with told_as(TokenizerError, failure + "checkpoint, in safetensors, instead."):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name, trust_remote_code=False)
    before = set(target.iterdir())
    save_tokenizer(tokenizer, target)
    return sorted(file.name for file in set(target.iterdir()) - before)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises `OSError` if the folder cannot be written to."""
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise OSError(str(error)) from error
