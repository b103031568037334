"""
Training a byte-level BPE tokenizer for a model that starts from scratch.

Every text is encoded as its UTF-8 bytes, and all 256 bytes are tokens: there is no unknown token, nothing is
normalised, and decoding what was encoded gives the text back exactly. What comes out is an ordinary tokenizer of
Transformers, whose folder needs no code of ours.
"""

import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..errors import TokenizerError, reason_of, told_as

PADDING, END_OF_TEXT, TURN_END, TURN_START = "<|pad|>", "<|endoftext|>", "<|im_end|>", "<|im_start|>"
# In this order, `bos_token_id` and `eos_token_id` of a tokenizer that chats are the defaults of NexusConfig, 1 and 2.
SPECIAL_TOKENS = (PADDING, END_OF_TEXT, TURN_END, TURN_START)
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
MAX_VOCAB_SIZE = 1 << 24  # the library reserves memory for all of them in advance

# Where a text is cut into words, inside of which BPE merges; the pattern of Qwen3.5. Next to that of GPT-4:
# - Digits stand alone. Three at a time, counted from the left, put the same digit of two numbers at different places of
#   their tokens, which makes arithmetic harder to learn, and a small vocabulary would spend 1000 tokens on them.
# - Combining marks (\p{M}) belong to their word. Else every word of Hindi or Thai is torn apart at its vowel signs.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATES = {
    # The tags around what the assistant says make `return_assistant_tokens_mask` work, for training on that alone.
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
        "{{ '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
}

PIECE = 1 << 16  # bytes read at a time


def train_tokenizer(
    files: Sequence[str | Path],
    vocab_size: int,
    chat_template: str | None = None,
    model_max_length: int | None = None,
    progress: Callable[[int], None] = lambda amount: None,
) -> PreTrainedTokenizerFast:
    """
    Trains a byte-level BPE tokenizer. The same files and options give the same tokenizer, bit for bit, whatever the
    order of the files. Memory grows with the number of different words, not with the size of the files. Ctrl-C is
    noticed only at the end, as the library has it.

    `eos_token` is `<|im_end|>` if the chat template has it, so that an answer ends generation, and `<|endoftext|>`
    otherwise; `bos_token` is `<|endoftext|>`. Neither is added by encoding. `pad_token` is a token of its own: where it
    is the end token, a loss that leaves out padding leaves out the end too, and the model never learns to stop.

    Special tokens that are written out in a text are encoded as special tokens. For text from strangers pass
    `split_special_tokens=True` when encoding: it is then text like any other. Both decode to the same text.

    Args:
        files: UTF-8 text. No merge crosses from one file to the next.
        vocab_size: tokens in all, special tokens and bytes included, from `MIN_VOCAB_SIZE` to `MAX_VOCAB_SIZE`. If the
            files have too few pairs that occur twice, the tokenizer has fewer, as `len(tokenizer)` tells.
        chat_template: Jinja source, such as `CHAT_TEMPLATES["chatml"]`; None for a model that does not chat.
        model_max_length: tokens at which `truncation=True` cuts; None for no limit.
        progress: called with the number of bytes after every piece that is read.

    Raises:
        `TokenizerError`, a ValueError: a file cannot be read or is not UTF-8, there is no text in any, a number is out
            of range, or the chat template does not render a conversation. The message is one sentence.
    """
    files = [Path(file) for file in files]
    if vocab_size < MIN_VOCAB_SIZE:
        raise TokenizerError(
            f"vocab_size={vocab_size}: must be at least {MIN_VOCAB_SIZE}, for the 256 bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens."
        )
    if vocab_size > MAX_VOCAB_SIZE:
        raise TokenizerError(f"vocab_size={vocab_size}: must be at most {MAX_VOCAB_SIZE}.")
    if model_max_length is not None and model_max_length < 1:
        raise TokenizerError(f"model_max_length={model_max_length}: must be at least 1.")
    check_files(files)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    wrap(bpe, chat_template, model_max_length)  # a template that does not work is found before the training
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # what occurs once is no pattern
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((piece for file in files for piece in read_pieces(file, progress)), trainer)
    return wrap(bpe, chat_template, model_max_length)


def config_fields(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """What the config of a model with this tokenizer must say, as in `NexusConfig(**config_fields(tokenizer), ...)`."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def wrap(bpe: Tokenizer, chat_template: str | None, model_max_length: int | None) -> PreTrainedTokenizerFast:
    """`bpe` as a tokenizer of Transformers. Raises `TokenizerError` if the chat template does not work."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=TURN_END if chat_template and TURN_END in chat_template else END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
        **({} if model_max_length is None else {"model_max_length": model_max_length}),
    )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
        with told_as(TokenizerError, "chat template: does not render a user's message ({reason})."):
            chat = tokenizer.apply_chat_template([{"role": "user", "content": "Good morning"}], tokenize=False)
        if "Good morning" not in chat:
            raise TokenizerError("chat template: leaves out what the user says; is this a Jinja chat template?")
    return tokenizer


def check_files(files: Sequence[Path]) -> None:
    """Raises `TokenizerError` for what can be known before reading."""
    for file in files:
        if not file.exists():
            raise TokenizerError(f"{file}: no such file.")
        if file.is_dir():
            raise TokenizerError(f"{file}: is a folder; give text files.")
    if not any(file.stat().st_size or not file.is_file() for file in files):  # the size of a pipe is not known
        raise TokenizerError(f"{', '.join(map(str, files[:3])) or 'files'}: nothing to train on, there is no text.")


def read_pieces(file: Path, progress: Callable[[int], None]) -> Iterator[str]:
    """
    The text of a file in pieces, cut only where `WORDS` cuts in any case: training on the pieces is training on the
    whole. Only where there is no such place for `PIECE` bytes, a piece ends anywhere.
    """
    decoder, offset, text, block = getincrementaldecoder("utf-8")(), 0, "", None
    try:
        with file.open("rb") as stream:
            while block != b"":
                block, unfinished = stream.read(PIECE), len(decoder.getstate()[0])
                text += decoder.decode(block, final=not block)
                offset += len(block)
                cut = LAST_CUT.match(text) if block else None
                end = cut.end() if cut else len(text)
                if end:
                    yield text[:end]
                text = text[end:]
                progress(len(block))
    except OSError as error:
        raise TokenizerError(f"{file}: cannot be read ({reason_of(error)}).") from error
    except UnicodeDecodeError as error:
        place = offset - unfinished + error.start
        raise TokenizerError(f"{file}: is not UTF-8 at byte {place}; convert it, for example with iconv.") from error


# The last place before a space that follows a word, or after a line break that a word follows.
LAST_CUT = re.compile(r".*(?:(?<=\S)(?= )|(?<=\n)(?=\S))", re.DOTALL)
