"""The `nexus tokenizer` command: tokenizers for models that start from scratch."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from ..errors import TokenizerError, reason_of
from ..tokenization import CHAT_TEMPLATES, config_fields, train_tokenizer
from ..tokenization.carry_over import TOKENIZER_FILES, save_tokenizer
from .checkpoint.output import staged_output
from .checkpoint.place import check_output, expanded, output_path
from .printing import say
from .progress import bytes_bar

app = typer.Typer(no_args_is_help=True, help="Tokenizers for models that start from scratch.")


@app.callback()  # without it, `train` would be no command of its own
def callback() -> None:
    pass


@app.command()
def train(
    files: Annotated[list[Path], typer.Argument(help="UTF-8 text to learn from.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    vocab_size: Annotated[str, typer.Option(metavar="NUMBER", help="Tokens in all, at least 260.")],
    chat_template: Annotated[
        str | None, typer.Option(help=f"{', '.join(CHAT_TEMPLATES)}, or a file with a Jinja template.")
    ] = None,
    model_max_length: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Tokens at which truncation cuts; no limit by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a tokenizer at OUT.")] = False,
) -> None:
    """Train a byte-level BPE tokenizer, lossless for every text, that loads with AutoTokenizer."""
    files, out = [expanded(file) for file in files], output_path(out)
    wanted = parse_number("--vocab-size", vocab_size)
    options = {
        "chat_template": None if chat_template is None else read_template(chat_template),
        "model_max_length": None if model_max_length is None else parse_number("--model-max-length", model_max_length),
    }
    texts = [file for file in files if file.is_file()]  # training says what is wrong with the others
    check_output(out, "a tokenizer", is_tokenizer, TOKENIZER_FILES.__contains__, inputs=texts, overwrite=overwrite)
    total = sum(file.stat().st_size for file in texts)
    try:
        with staged_output(out) as (folder, _):
            try:
                with bytes_bar("reading, then merging", total) as advance:
                    # In a thread: the library hears of Ctrl-C only when it has finished, the one that waits at once.
                    training = ThreadPoolExecutor(1).submit(train_tokenizer, files, wanted, **options, progress=advance)
                    tokenizer = training.result()
            except (KeyboardInterrupt, SystemExit):  # the latter of SIGTERM, see stopping.py
                raise typer.Abort() from None  # a failure, for `staged_output`: there is nothing to continue
            save_tokenizer(tokenizer, folder)
    except typer.Abort:
        print("Aborted.", file=sys.stderr, flush=True)
        os._exit(130)  # the library's thread is still at work, and does not survive an orderly exit
    fields = config_fields(tokenizer)
    if fields["vocab_size"] < wanted:
        print(
            f"warning: the text has too few pairs that occur twice for {wanted} tokens; the tokenizer has "
            f"{fields['vocab_size']}. Train on more text, or ask for fewer.",
            file=sys.stderr,
        )
    say(f"{out}: {fields['vocab_size']} tokens.")
    say(f"For the model: NexusConfig({', '.join(f'{name}={value}' for name, value in fields.items())}, ...)")


def parse_number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise TokenizerError(f"{option} {text}: give a whole number.") from None


def read_template(name: str) -> str:
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    try:
        return expanded(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TokenizerError(
            f"--chat-template {name}: no such file, and no template of ours ({', '.join(CHAT_TEMPLATES)})."
        ) from None
    except OSError as error:
        raise TokenizerError(f"--chat-template {name}: cannot be read ({reason_of(error)}).") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"--chat-template {name}: is not UTF-8 at byte {error.start}.") from error


def is_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()
