"""
Does a tokenizer fit the model that it lies beside? Two things go wrong in real checkpoints: the vocabulary is larger
than the embedding, and config.json, generation_config.json and the tokenizer name different special tokens.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from ..bounded import bounded, step
from ..errors import TokenizerError, reason_of
from .carry_over import has_tokenizer, tokenizer_file

CONFIG, GENERATION_CONFIG, TOKENIZER = "config.json", "generation_config.json", "the tokenizer"
KINDS = ("bos", "eos", "pad")


def check_tokenizer(folder: str | Path, vocab_size: int, generates: bool = True) -> dict[str, Any]:
    """
    Compares the tokenizer in a model folder with the rows of the embedding, and the special tokens of all files with
    each other. No code of the folder is run.

    Args:
        folder: tokenizer, config.json and generation_config.json, each of which may be missing.
        vocab_size: rows of the embedding.
        generates: whether the model does, and so has to stop somewhere; an encoder does not.

    Returns:
        "tokens": of the tokenizer, added ones included; None if there is no tokenizer or it was not loaded.
        "embedding_rows": `vocab_size`. "padding_rows": rows that are no token's; None if `tokens` is.
        "special_token_ids": for each place that exists, {"bos", "eos", "pad"}: an id, a list of ids or None.
        "warnings": one sentence each; empty if all is well.

    Raises:
        `TokenizerError`: a token of ordinary text has an id for which there is no row, the tokenizer cannot be loaded,
            loading it takes more time or memory than a tokenizer needs, or a JSON file is not valid.
    """
    return bounded(examine, Path(folder), vocab_size, generates, raises=TokenizerError)


def examine(folder: Path, vocab_size: int, generates: bool) -> dict[str, Any]:
    """Runs in a process of its own, see bounded.py."""
    places = {
        name: {kind: token_ids(folder / name, content, kind) for kind in KINDS}
        for name in (CONFIG, GENERATION_CONFIG)
        if (content := read_json(folder / name)) is not None
    }
    report = {
        "tokens": None,
        "embedding_rows": vocab_size,
        "padding_rows": None,
        "special_token_ids": places,
        "warnings": [],
    }
    if not has_tokenizer(folder):
        report["warnings"].append("There is no tokenizer beside the model.")
    elif code := remote_code(folder):
        report["warnings"].append(f"The tokenizer needs code of its own, {code}, which was neither run nor checked.")
    else:
        tokenizer = load(folder)
        ids = tokenizer.get_vocab()
        beyond = sorted((id_, token) for token, id_ in ids.items() if id_ >= vocab_size)
        if beyond:
            last, (_, first) = beyond[-1][0], beyond[0]
            without_row = (
                f"the tokenizer has ids up to {last}, but the embedding has only {vocab_size} rows; {len(beyond)} "
                f"tokens, the first of them {first!r}, would have none."
            )
            # Ordinary text does not contain added tokens, such as one for padding.
            if any(token not in tokenizer.get_added_vocab() for _, token in beyond):
                raise TokenizerError(f"{folder}: {without_row}")
            remedy = f"Call model.resize_token_embeddings({last + 1}) before you use them."
            report["warnings"].append(f"T{without_row[1:]} {remedy}")
        places[TOKENIZER] = {kind: getattr(tokenizer, f"{kind}_token_id") for kind in KINDS}
        report["tokens"] = len(set(ids.values()))
        report["padding_rows"] = vocab_size - len({id_ for id_ in ids.values() if id_ < vocab_size})
    report["warnings"] += [warning for kind in KINDS for warning in compare(kind, places, vocab_size)]
    ends = [place for place, ids in places.items() if ids["eos"] not in (None, [])]
    if generates and ends == [TOKENIZER] and len(places) > 1:
        end = places[TOKENIZER]["eos"]
        report["warnings"].append(f"eos_token_id: only the tokenizer has one, {end}; generation will not stop there.")
    return report


def compare(kind: str, places: dict[str, dict[str, int | list[int] | None]], vocab_size: int) -> list[str]:
    """
    Warnings about one kind of special token. Several end tokens in one place agree with one of them in another. A place
    that is silent agrees with the others, except for the tokenizer, which cannot then make the token.
    """
    said = {place: values[kind] for place, values in places.items()}
    ids = {place: set(each if isinstance(each, list) else [each]) - {None} for place, each in said.items()}
    warnings = [
        f"{kind}_token_id: {place} has {show(named)}, but the ids of the embedding are 0 to {vocab_size - 1}."
        for place, named in ids.items()
        if any(not 0 <= id_ < vocab_size for id_ in named)
    ]
    named = [each for each in ids.values() if each]
    disagree = bool(named) and min(named, key=len) != set.intersection(*named)
    if disagree or (named and not ids.get(TOKENIZER, True)):
        listing = ", ".join(f"{place} has {show(each) if each else 'none'}" for place, each in ids.items())
        warnings.append(f"{kind}_token_id differs: {listing}.")
    return warnings


def token_ids(file: Path, content: dict[str, Any], kind: str) -> int | list[int] | None:
    value = content.get(f"{kind}_token_id")
    if value is not None and not all(isinstance(id_, int) for id_ in (value if isinstance(value, list) else [value])):
        raise TokenizerError(f"{file}: {kind}_token_id={value!r} is not an id or a list of ids.")
    return value


def show(ids: set[int]) -> str:
    return " and ".join(map(str, sorted(ids)))


def remote_code(folder: Path) -> str | None:
    """The class in the folder's own code that its tokenizer is of, if there is no class of Transformers for it."""
    config = read_json(folder / "tokenizer_config.json") or {}
    auto_map = config.get("auto_map")
    reference = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    name = config.get("tokenizer_class")
    known = isinstance(name, str) and name and tokenizer_class_from_name(name) is not None
    if not reference or known:
        return None
    if isinstance(reference, list):  # of the slow and of the fast class
        return next((str(each) for each in reversed(reference) if each), None)
    return str(reference)


def load(folder: Path) -> PreTrainedTokenizerBase:
    step(f"{tokenizer_file(folder)}: loading this tokenizer")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        if needs_sentencepiece(folder) and not (is_sentencepiece_available() and is_protobuf_available()):
            raise TokenizerError(
                f"{folder}: reading its tokenizer.model needs the packages sentencepiece and protobuf: "
                "pip install 'nexus-transformers[sentencepiece]'."
            ) from error
        raise TokenizerError(f"{folder}: Transformers cannot load the tokenizer ({reason_of(error)}).") from error


def needs_sentencepiece(folder: Path) -> bool:
    """Transformers then names only the last package that it tried."""
    models = ("tokenizer.model", "spiece.model")
    return any((folder / name).exists() for name in models) and not (folder / "tokenizer.json").exists()


def read_json(file: Path) -> dict[str, Any] | None:
    """None if there is no such file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file}: is not valid JSON ({reason_of(error)}).") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{file}: is not a JSON object.")
    return content
