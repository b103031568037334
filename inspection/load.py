"""What is inspected: a Nexus model with eager attention, its tokenizer, and a prompt as tokens."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from .. import modeling_nexus
from ..bounded import bounded, step
from ..conversion_scripts.checkpoint.code import check_code
from ..conversion_scripts.checkpoint.open import locate, open_nexus
from ..conversion_scripts.checkpoint.place import is_utf8
from ..conversion_scripts.checkpoint.plan import check_tensors
from ..conversion_scripts.progress import quiet_when_piped
from ..errors import InspectionError, reason_of, told_as
from ..modeling_nexus import NexusPreTrainedModel
from ..tokenization.carry_over import TOKENIZER_FILES, class_of, tokenizer_file

MAX_TOKENS = 512


def open_model(model: str, revision: str | None = None) -> tuple[NexusPreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads a Nexus model, in float32, and its tokenizer, with classes of this package. No code of the folder is run; if
    that is not ours, the model is refused: it may compute something else.

    Args:
        model: a folder that `nexus convert`, `save_pretrained` or Trainer wrote, or a Hub id.
        revision: branch, tag or commit, for a Hub id.

    Raises:
        `CheckpointError`: there is no such model, it is not a Nexus model or not complete, or it has code of its own.
        `InspectionError`: it has no tokenizer.
    """
    folder, revision = locate(model, revision)
    nexus = open_nexus(folder, model, revision)
    check_code(folder, nexus.raw_config, allow="remove it: nexus inspect computes with the code of this package")
    check_tensors(nexus, nexus.architecture)
    tokenizer = open_tokenizer(nexus.folder, model)
    with quiet_when_piped():
        loaded = getattr(modeling_nexus, nexus.architecture).from_pretrained(
            nexus.folder, config=nexus.config, dtype=torch.float32, attn_implementation="eager"
        )
    return loaded.eval(), tokenizer


def open_tokenizer(folder: Path, label: str) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InspectionError(
            f"{label}: has no tokenizer, so a prompt cannot be read; save one there with tokenizer.save_pretrained."
        )
    with told_as(InspectionError, f"{label}: its tokenizer cannot be read ({{reason}})."):
        bounded(class_of, folder, raises=InspectionError)  # loading it ends, and so will the next time
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def open_gates(model: NexusPreTrainedModel, value: float) -> None:
    """Sets all gates, in memory only."""
    gates = model.gates()
    if not torch.tensor(value, dtype=torch.float32).isfinite():
        raise InspectionError(f"--open-gates {value}: give a number, usually between 0 (closed) and 1 (fully nested).")
    if not gates:
        nested = max(model.config.layer_orders) > 1
        why = "it is nested without gates, fully" if nested else "all its layers are of order 1, standard attention"
        raise InspectionError(f"--open-gates {value:g}: this model has no gates; {why}.")
    with torch.no_grad():
        for gate in gates.values():
            gate.fill_(value)


def encode(
    model: NexusPreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool, generate: int
) -> torch.Tensor:
    """
    The token ids of the prompt, (1, T); with `chat` as a user's turn in the chat template. Raises `InspectionError` if
    it cannot be shown whole, with `generate` more tokens.
    """
    if not is_utf8(prompt):
        raise InspectionError("The prompt is not UTF-8 text; check the encoding of the terminal or of the script.")
    if not prompt.strip():
        raise InspectionError("The prompt is empty; give some text to attend to.")
    if generate < 0:
        raise InspectionError(f"--generate {generate}: give a number of tokens, 0 or more.")
    if generate and not model.can_generate():
        raise InspectionError(f"--generate {generate}: a {type(model).__name__} cannot continue a text.")
    if chat and not tokenizer.chat_template:
        raise InspectionError("--chat: the tokenizer has no chat template; leave --chat out.")
    ids = bounded(token_ids, tokenizer, prompt, chat, raises=InspectionError)
    check_ids(ids, generate, model.config)
    return torch.tensor([ids])


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool) -> list[int]:
    """Runs in a process of its own, see bounded.py: tokenizers and chat templates are programs."""
    if not chat:
        step(f"{tokenizer_file(Path(tokenizer.name_or_path))}: tokenizing the prompt with it")
        return tokenizer(prompt)["input_ids"]
    folder = Path(tokenizer.name_or_path)
    files = [folder / name for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")]
    step(f"{next((file for file in files if file.is_file()), folder)}: rendering the prompt with it")
    turn = [{"role": "user", "content": prompt}]
    try:
        return tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    except MemoryError:
        raise
    except Exception as error:  # a template is a program: anything may go wrong in it
        raise InspectionError(f"--chat: the chat template cannot be rendered ({reason_of(error)}).") from error


def continued(model: NexusPreTrainedModel, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """The ids, (1, T), and the model's own greedy continuation by at most so many tokens."""
    if not tokens:
        return ids
    own = model.generation_config  # of which only the ends count: it may sample, or return several
    model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens)


def check_ids(ids: list[int], generate: int, config) -> None:
    if not ids:
        raise InspectionError("The tokenizer makes no tokens of this prompt; give some text to attend to.")
    total = len(ids) + generate
    limit = min(MAX_TOKENS, config.max_position_embeddings)
    if total > limit:
        what = f"{len(ids)} tokens" + (f" and {generate} to generate" if generate else "")
        why = "a page shows" if limit == MAX_TOKENS else "the model was made for"
        raise InspectionError(f"The prompt is too long: {what}, but {why} at most {limit}. Shorten it.")
    if max(ids) >= config.vocab_size:
        raise InspectionError(
            f"The tokenizer and the model do not belong together: the prompt has token {max(ids)}, the model knows "
            f"{config.vocab_size}."
        )


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text of every token, its leading space included. Runs in a process of its own."""
    step(f"{tokenizer_file(Path(tokenizer.name_or_path))}: decoding tokens with it")
    pieces = []
    for token_id in ids:
        piece = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        token = tokenizer.convert_ids_to_tokens(token_id) or f"[{token_id}]"  # a row that is no token's
        if "\ufffd" in piece or not piece:
            piece = token  # part of a character, or nothing that can be seen: as the vocabulary writes it
        elif token.startswith("▁") and not piece.startswith(" "):
            piece = " " + piece  # decoding drops the space in front of the first word
        pieces.append(piece)
    return pieces
