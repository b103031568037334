"""The `nexus` command. It parses and prints; what it does is in the functions it calls."""

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import logging

from ..errors import ConversionError
from ..inspection import inspect as run_inspect
from ..inspection.printing import print_inspection
from . import edge
from .checkpoint.output import failures_of_writing
from .checkpoint.place import check_writable, expanded
from .convert import convert as run_convert
from .hub.card import refresh_card
from .hub.push import push as run_push
from .nesting import Nesting
from .printing import print_json, print_plan, print_push, print_report, print_verification
from .stopping import stopped_by_signals
from .to_source import convert_to_source
from .tokenizer_command import app as tokenizer_app
from .verification.verify import verify as run_verify

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(tokenizer_app, name="tokenizer")
NESTING_OPTIONS = [field.name for field in fields(Nesting)]  # of `convert`, which have these names
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SourceArgument = Annotated[str, typer.Argument(help="Checkpoint folder, Hub id, .gguf file or a folder with one.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit, for a Hub id.")]
LayerByLayerOption = Annotated[
    bool, typer.Option("--layer-by-layer", help="Verify with one layer in memory at a time; done anyway if need be.")
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the code in the Nexus model's folder, with all your rights, though it is not ours.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON, errors too.")]


@app.callback()
def callback(
    debug: Annotated[  # named for --help: `edge.run` takes it out of the command line
        bool, typer.Option("--debug", help="If it fails, print the traceback too. It may stand anywhere.")
    ] = False,
) -> None:
    """Nexus: higher-order attention for Hugging Face checkpoints."""


@app.command()
def convert(
    context: typer.Context,
    source: SourceArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    order: Annotated[str, typer.Option(help="Attention order: one number, or one per layer as in 2,1,1,1.")] = "2",
    inner_attention: Annotated[str, typer.Option(help="What an inner level is: shared, separate or self.")] = "shared",
    inner_output_projection: Annotated[
        bool | None,
        typer.Option(
            "--inner-output-projection/--no-inner-output-projection",
            help="W_O between the levels; by default only where the heads are not as wide as the model.",
        ),
    ] = None,
    inner_scale: Annotated[
        bool,
        typer.Option("--inner-scale/--no-inner-scale", help="Scale inner outputs to the size of what they replace."),
    ] = True,
    inner_window: Annotated[
        int | None, typer.Option(help="Inner levels attend to the last so many tokens; by default to all.")
    ] = None,
    refine: Annotated[str, typer.Option(help="What inner levels refine: any of query,key,value.")] = "query,key",
    seed: Annotated[int | None, typer.Option(help="Of the random inner layers of separate; by default 0.")] = None,
    gate_init: Annotated[float, typer.Option(help="Where the gates start; 0 keeps the source's function.")] = 0.0,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="No gates: fully nested from the start.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; by default the source's.")] = None,
    to_source: Annotated[bool, typer.Option("--to-source", help="The way back: SOURCE is a Nexus model.")] = False,
    family: Annotated[str | None, typer.Option(help="With --to-source: the model_type to become.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest size of a weight file.")] = "5GB",
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Skip the comparison with the source.")] = False,
    layer_by_layer: LayerByLayerOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model of ours at OUT.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
    revision: RevisionOption = None,
) -> None:
    """
    Turn a standard checkpoint into a Nexus model that computes the same function until its gates are trained.

    Interrupted, it continues when the same command is run again.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}.")
    common = {
        "verify": not no_verify,
        "layer_by_layer": layer_by_layer,
        "overwrite": overwrite,
        "max_shard_size": max_shard_size,
        "command": ["nexus", *sys.argv[1:]],
        "dry_run": dry_run,
    }
    if to_source:
        for name in (*NESTING_OPTIONS, "no_gate", "dtype", "revision"):
            if context.get_parameter_source(name).name == "COMMANDLINE":
                raise ConversionError(f"--{name.replace('_', '-')}: has no meaning with --to-source.")
        report = convert_to_source(source, out, family, trust_remote_code=trust_remote_code, **common)
    elif family:
        raise ConversionError(
            "--family: has a meaning with --to-source only; otherwise config.json says what SOURCE is."
        )
    elif trust_remote_code:
        raise ConversionError(
            "--trust-remote-code: has a meaning with --to-source only; no code of SOURCE is ever run."
        )
    else:
        if no_gate and gate_init:
            raise ConversionError(f"--gate-init {gate_init}: has no effect with --no-gate. Leave one of them out.")
        nesting = {name: context.params[name] for name in NESTING_OPTIONS}
        nesting["order"], nesting["refine"] = parse_order(order), refine.split(",")
        nesting["gate_init"] = None if no_gate else gate_init
        report = run_convert(source, out, dtype=DTYPES.get(dtype), revision=revision, **nesting, **common)
    show(report, as_json, print_plan if dry_run else print_report, out)


@app.command()
def verify(
    source: SourceArgument,
    out: Annotated[Path, typer.Argument(help="The Nexus model.")],
    layer_by_layer: LayerByLayerOption = False,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
    revision: RevisionOption = None,
) -> None:
    """Check that the Nexus model in OUT, its gates closed, is the same function as SOURCE."""
    out = expanded(out)
    check_writable(out)
    figures = run_verify(source, out, revision, layer_by_layer, trust_remote_code)
    with failures_of_writing(out):
        refresh_card(out)
    show(figures, as_json, print_verification)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="The Nexus model.")],
    repo: Annotated[str, typer.Argument(help="USER/NAME on the Hub; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make the new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Upload the Nexus model in FOLDER to the Hub in one commit, and check what the Hub then serves."""
    show(run_push(expanded(folder), repo, private, dry_run, trust_remote_code), as_json, print_push)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="The Nexus model: a folder, or a Hub id.")],
    prompt: Annotated[str, typer.Argument(help="The text to attend to.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; by default the model's name with -inspect, here.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the chat template.")] = False,
    generate: Annotated[
        int, typer.Option(metavar="NUMBER", help="Continue the prompt by at most so many tokens first.")
    ] = 0,
    open_gates: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="See what it would do with all gates at this value.")
    ] = None,
    as_json: JsonOption = False,
    revision: RevisionOption = None,
) -> None:
    """
    Show what every head attends to at every level, and by which path, on a page that opens from the disk.
    """
    result = run_inspect(model, prompt, out, chat=chat, generate=generate, gates=open_gates, revision=revision)
    show(result, as_json, print_inspection)


def show(result: dict[str, Any], as_json: bool, printed: Callable[..., None], *arguments: Any) -> None:
    if as_json:
        print_json(result)
    else:
        printed(result, *arguments)


def parse_order(order: str) -> int | list[int]:
    try:
        orders = [int(part) for part in order.split(",")]
    except ValueError:
        raise ConversionError(f"--order {order}: give a number, or one number per layer, as in 2,1,1,1.") from None
    return orders if "," in order else orders[0]


def main() -> None:
    logging.set_verbosity(logging.CRITICAL)  # what libraries say on their way, and would print as it came
    logging.disable_progress_bar()

    def run() -> None:
        with stopped_by_signals():
            app()

    edge.run(run)
