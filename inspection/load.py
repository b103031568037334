"""What is inspected: a Nexus model with eager attention, its tokenizer, and a prompt as tokens."""

import math
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .. import modeling_nexus
from ..conversion_scripts.checkpoint.source import check_links, download, read_json
from ..conversion_scripts.hub.upload import AUTO_CLASSES, check_tensors
from ..conversion_scripts.progress import quiet_when_piped
from ..conversion_scripts.to_source import open_nexus
from ..errors import ConversionError, reason_of
from ..modeling_nexus import NexusPreTrainedModel
from ..tokenization import TOKENIZER_FILES

MAX_TOKENS = 512


def open_model(model: str, revision: str | None = None) -> tuple[NexusPreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads a Nexus model and its tokenizer with the classes of this package; no code of the folder is run.

    Args:
        model: a folder that `nexus convert`, `save_pretrained` or Trainer wrote, or a Hub id.
        revision: branch, tag or commit, for a Hub id.

    Raises:
        `ConversionError`: there is no such model, it is not a Nexus model or not complete, or has no tokenizer.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        folder = path
    elif path.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ConversionError(f"{model}: no such folder. Give the folder of a Nexus model, or a Hub id as user/name.")
    else:
        folder, _ = download(model, revision)
    raw = read_json(folder / "config.json", "is this a Nexus model?")
    if raw.get("model_type") != "nexus":
        raise ConversionError(
            f"{model}: is not a Nexus model (model_type={raw.get('model_type')!r}). Convert it first: nexus convert "
            f"{model} OUT."
        )
    checkpoint, config = open_nexus(folder)
    check_links(folder)
    architecture = (raw.get("architectures") or ["NexusForCausalLM"])[0]
    if architecture not in AUTO_CLASSES:
        raise ConversionError(
            f"{folder / 'config.json'}: architectures is {raw['architectures']!r}, none of {', '.join(AUTO_CLASSES)}."
        )
    check_tensors(checkpoint, config, architecture)
    tokenizer = open_tokenizer(folder, model)
    with quiet_when_piped():
        loaded = getattr(modeling_nexus, architecture).from_pretrained(
            folder, config=config, dtype="auto", attn_implementation="eager"
        )
    return loaded.eval(), tokenizer


def open_tokenizer(folder: Path, label: str) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ConversionError(
            f"{label}: has no tokenizer, so a prompt cannot be read; save one there with tokenizer.save_pretrained."
        )
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the reader of every format has exceptions of its own
        raise ConversionError(f"{label}: its tokenizer cannot be read ({reason_of(error)}).") from error


def open_gates(model: NexusPreTrainedModel, value: float) -> None:
    """Sets all gates, in memory only."""
    gates = model.gates()
    if not math.isfinite(value):
        raise ConversionError(f"--open-gates {value}: give a number, usually between 0 (closed) and 1 (fully nested).")
    if not gates:
        nested = max(model.config.layer_orders) > 1
        why = "it is nested without gates, fully" if nested else "all its layers are of order 1, standard attention"
        raise ConversionError(f"--open-gates {value:g}: this model has no gates; {why}.")
    with torch.no_grad():
        for gate in gates.values():
            gate.fill_(value)


def encode(
    model: NexusPreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool, generate: int
) -> torch.Tensor:
    """
    The token ids of the prompt, (1, T); with `chat` as a user's turn in the chat template. Raises `ConversionError` if
    it cannot be shown whole, with `generate` more tokens.
    """
    if not prompt.strip():
        raise ConversionError("The prompt is empty; give some text to attend to.")
    if generate < 0:
        raise ConversionError(f"--generate {generate}: give a number of tokens, 0 or more.")
    if generate and not model.can_generate():
        raise ConversionError(f"--generate {generate}: a {type(model).__name__} cannot continue a text.")
    if chat and not tokenizer.chat_template:
        raise ConversionError("--chat: the tokenizer has no chat template; leave --chat out.")
    if chat:
        turn = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    check_ids(ids, generate, model.config)
    return torch.tensor([ids])


def continued(model: NexusPreTrainedModel, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """The ids, (1, T), and the model's own greedy continuation by at most so many tokens."""
    if not tokens:
        return ids
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, num_beams=1)


def check_ids(ids: list[int], generate: int, config) -> None:
    if not ids:
        raise ConversionError("The tokenizer makes no tokens of this prompt; give some text to attend to.")
    total = len(ids) + generate
    limit = min(MAX_TOKENS, config.max_position_embeddings)
    if total > limit:
        what = f"{len(ids)} tokens" + (f" and {generate} to generate" if generate else "")
        why = "a page shows" if limit == MAX_TOKENS else "the model was made for"
        raise ConversionError(f"The prompt is too long: {what}, but {why} at most {limit}. Shorten it.")
    if max(ids) >= config.vocab_size:
        raise ConversionError(
            f"The tokenizer and the model do not belong together: the prompt has token {max(ids)}, the model knows "
            f"{config.vocab_size}."
        )


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text of every token, its leading space included."""
    pieces = []
    for token_id in ids:
        piece = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        token = tokenizer.convert_ids_to_tokens(token_id)
        if "\ufffd" in piece or not piece:
            piece = token  # part of a character, or nothing that can be seen: as the vocabulary writes it
        elif token.startswith("▁") and not piece.startswith(" "):
            piece = " " + piece  # decoding drops the space in front of the first word
        pieces.append(piece)
    return pieces
