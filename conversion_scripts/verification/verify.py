"""
Is a Nexus model, with its gates closed, the same function as its source? Two independent answers: every tensor of the
files is compared, and both models are loaded and run in a fresh process that cannot import our package.
"""

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from ...configuration_nexus import AUTO_MAP, TESTED_TRANSFORMERS
from ...errors import VerificationError
from ...tokenization.carry_over import alone, has_tokenizer
from ..checkpoint.added import is_gate, is_nesting
from ..checkpoint.code import check_code
from ..checkpoint.files import CODE_FILES, REPORT_FILE, ROOT, read_json, write_json
from ..checkpoint.open import Nexus, Source, open_nexus, open_source
from ..checkpoint.output import failures_of_writing
from ..checkpoint.plan import check_tensors, parts_of
from ..checkpoint.weights import Checkpoint
from ..families import decoder_fields
from ..progress import bytes_bar, console
from .isolated import run_isolated

ROUNDING = 2**-15  # of the largest logit, in float32, for sources that multiply or add in another order
# A check is given up after this time, which a slow machine with a large model must not need: a 7B model has 13 days.
HOURS, PARAMETERS_PER_HOUR = 24, 25e6
CONTROL_FACTOR = 10  # by which a control must exceed the tolerance, where that is not 0


def verify(
    source: str | Path,
    out: str | Path,
    revision: str | None = None,
    layer_by_layer: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """
    Compares the Nexus model in the folder `out` with `source` (folder, Hub id or GGUF file), adds the figures to the
    folder's conversion_report.json, if it has one, and returns them.

    Args:
        layer_by_layer: hold one layer of one model in memory at a time; done anyway if they would not fit.
        trust_remote_code: run code in `out` that is not ours, too.

    Raises:
        `VerificationError`: they are not the same function. The message says which tensor, or which layer and token,
            differs first.
        `CheckpointError`: one of them cannot be read, or `out` has code that may not be run.
        `ConversionError`: the source's config.json makes no model.
    """
    out = Path(out)
    report_file = out / REPORT_FILE
    report = read_json(report_file) if report_file.exists() else None
    figures = verify_opened(open_source(source, revision), out, layer_by_layer, trust_remote_code)
    if report is not None:
        with failures_of_writing(out):
            write_json(report_file, report | {"verification": figures})
    return figures


def verify_opened(
    source: Source,
    out: Path,
    layer_by_layer: bool = False,
    trust_remote_code: bool = False,
    label: str | Path | None = None,
) -> dict[str, Any]:
    """`label`: what the user calls the result, if not `out`."""
    nexus = open_nexus(out, str(label or out))
    check_code(out, nexus.raw_config, trust_remote_code)
    check_tensors(nexus, source.family.architecture)
    compare_configs(source, nexus)
    figures = compare_tensors(source, nexus)
    # Where the source computes in another order, it rounds otherwise: float32 keeps the difference small.
    dtype = torch.float32 if source.family.rounds else nexus.dtype
    fit = all(fits_in_memory(checkpoint, dtype) for checkpoint in (source, nexus))
    with console.status("comparing source and result in a fresh process"):
        figures |= compare_functions(source, nexus, dtype, layer_by_layer or not fit, trust_remote_code)
    judge(figures, nexus.label)
    return figures


def compare_configs(source: Source, result: Nexus) -> None:
    """Every field that the function depends on. Many show in no short text: a window, say, or a rotary embedding."""
    expected = source.decoder_config(source.nexus_fields())
    wanted, actual = decoder_fields(expected), decoder_fields(result.config)
    for name, value in wanted.items():
        if actual[name] != value:
            raise VerificationError(
                f"{result.label}: config.json says {name}={actual[name]!r}, and its source has {value!r}: it is not "
                "the same function. Convert again."
            )


def compare_tensors(source: Source, result: Nexus) -> dict[str, Any]:
    """Every weight of the files, bit for bit, and an account of parameters and bytes."""
    seen = set()
    with bytes_bar("comparing", source.nbytes) as advance:
        for name in source.tensors:
            targets = source.family.rule_of(name).targets
            if not targets:
                continue
            tensor = source.read(name)
            for target, expected in zip(targets, parts_of(source, name, tensor, result.config), strict=True):
                if target not in result.tensors:
                    raise VerificationError(
                        f"{result.label}: lacks tensor {target!r}, which the source has as {name!r}."
                    )
                actual = result.read(target)
                if expected.shape != actual.shape or not torch.equal(expected.to(actual.dtype), actual):
                    raise VerificationError(
                        f"{result.label}: tensor {target!r} is the first that differs from its source {name!r}. If the "
                        "model was trained beyond its gates, this is so; otherwise convert again."
                    )
                seen.add(target)
            advance(tensor.nbytes)
    added = set(result.tensors) - seen
    for target in sorted(added):
        if not is_nesting(target):
            raise VerificationError(f"{result.label}: holds tensor {target!r}, which the source does not have.")
    return {
        "identical_tensors": len(seen),
        "identical_parameters": sum(result.tensors[name].numel() for name in seen),
        "added_parameters": sum(result.tensors[name].numel() for name in added),
        "gates_closed_in_memory": sum(bool(result.read(name).any()) for name in added if is_gate(name)),
        "added_bytes": sum(result.tensors[name].nbytes for name in added),
        "file_bytes": sum(file.stat().st_size for file in result.files),
    }


def fits_in_memory(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> bool:
    """
    Loaded in `dtype`, by default its own. One model is in memory at a time; half as much again is left for activations
    and logits.
    """
    return 1.5 * checkpoint.parameters * (dtype or checkpoint.dtype).itemsize < psutil.virtual_memory().available


def folder_to_run(nexus: Nexus, folder: Path, trust_remote_code: bool) -> Path:
    """
    The model's folder, if all of its code may be run. Else `folder`, which is made, of links to its files and a config
    and code that are checked as they lie there: the model's, or that of this package if it brings none.
    """
    if trust_remote_code and any(nexus.folder.glob("*.py")):
        return nexus.folder
    folder.mkdir()
    for file in nexus.folder.iterdir():
        if file.name != "config.json" and file.suffix.lower() != ".py":
            (folder / file.name).symlink_to(file.resolve())
    own = nexus.folder if any(nexus.folder.glob("*.py")) else ROOT
    for name in CODE_FILES:
        if (own / name).exists():
            shutil.copyfile(own / name, folder / name)
    config = nexus.raw_config if own == nexus.folder else nexus.raw_config | {"auto_map": AUTO_MAP}
    write_json(folder / "config.json", config)
    check_code(folder, config)
    return folder


def compare_functions(
    source: Source, nexus: Nexus, dtype: torch.dtype, layer_by_layer: bool, trust_remote_code: bool
) -> dict[str, Any]:
    """Runs both models in a fresh process, see isolated_check.py."""
    have_tokenizers = source_has_tokenizer(source), has_tokenizer(nexus.folder)
    nested_without_gates = not nexus.config.inner_gate and max(nexus.config.layer_orders) > 1
    tolerance = ROUNDING if source.family.rounds else 0.0
    request = {
        "gguf": {"gguf_file": source.gguf_file} if source.gguf_file else {},
        "of_images_too": source.wrapper is not None,
        "is_encoder": source.family.is_encoder,
        "mask_token_id": getattr(source.config, "mask_token_id", None) if source.family.is_encoder else None,
        "rope_parameters": getattr(source.config, "rope_parameters", None),
        "dtype": str(dtype).removeprefix("torch."),
        "attn_implementation": "sdpa",
        "inner_window": nexus.config.inner_window,
        "attention_order": 1 if nested_without_gates else None,
        "has_tokenizer": all(have_tokenizers),
        "layer_by_layer": layer_by_layer and source.gguf_file is None,
        "control_tolerance": CONTROL_FACTOR * tolerance,
    }
    failure = f"{nexus.label}: could not be compared with {source.label} in a fresh process"
    seconds = 3600 * (HOURS + nexus.parameters / PARAMETERS_PER_HOUR)

    def prepare(scratch: Path) -> None:
        request["target"] = str(folder_to_run(nexus, scratch / "model", trust_remote_code).resolve())

    folder = source.folder.resolve()
    with alone(folder / source.gguf_file) if source.gguf_file else nullcontext(folder) as folder:
        request["source"] = str(folder)
        figures = run_isolated("isolated_check.py", request, failure, seconds, prepare, HF_HUB_OFFLINE="1")
    if "exceeded" in figures:
        named = figures["exceeded"].replace(f"{request['target']}/", f"{nexus.folder}/")
        raise VerificationError(named.replace(f"{request['source']}/", f"{source.folder}/"))
    if figures.get("failed") == "source":
        raise VerificationError(
            f"{source.label}: Transformers itself cannot load and run the source ({figures['reason']}), so there is "
            "nothing to compare with. --no-verify converts without comparing."
        )
    if figures.get("failed") == "result":
        raise VerificationError(f"{nexus.label}: could not be loaded and run in a fresh process ({figures['reason']}).")
    for compared in (figures, figures.get("in_float32", {})):
        if compared:
            compared["tolerance"] = tolerance * compared["max_abs_logit"]
    if any(have_tokenizers) and not all(have_tokenizers):
        figures["skipped"].append(f"tokenizers, as {nexus.label if have_tokenizers[0] else source.label} has none")
    order = 1 if nested_without_gates else nexus.config.attention_order
    return figures | {"compared_at_order": order}


def source_has_tokenizer(source: Source) -> bool:
    return source.has_tokenizer if source.gguf_file else has_tokenizer(source.folder)


def judge(figures: dict[str, Any], label: str) -> None:
    """Raises `VerificationError` unless the figures are those of one function, and the controls those of another."""
    if "tokens_differ" in figures:
        raise VerificationError(
            f"{label}: the tokenizer makes other tokens of {figures['tokens_differ']!r} than its source."
        )
    if "chat_differs" in figures:
        raise VerificationError(f"{label}: the chat template renders another prompt than the source's.")
    judge_outputs(figures, label)
    if "in_float32" in figures:  # where all overflows, only there a control shows
        judge_outputs(figures["in_float32"], f"{label}, computed in float32")
    judge_controls(figures.get("in_float32", figures), label)


def judge_outputs(figures: dict[str, Any], label: str) -> None:
    if not figures["max_abs_logit_difference"] <= figures["tolerance"]:
        where, layer = figures["first_difference"], figures["first_differing_layer"]
        raise VerificationError(
            f"{label}: is not the same function as its source: logits differ by up to "
            f"{figures['max_abs_logit_difference']:.3g} (KL {figures['mean_kl']:.3g}), first at token "
            f"{where['position']} of passage {where['passage']}, though all weights are equal; "
            f"{'no hidden state differs' if layer is None else f'the first layer to differ is number {layer}'}."
        )
    if not figures.get("greedy_equal", True):
        oldest, newest = TESTED_TRANSFORMERS
        same = "the same" if figures["greedy_equal_without_cache"] else "another one too"
        raise VerificationError(
            f"{label}: logits are equal but the greedy continuation differs, first at new token "
            f"{figures['greedy_first_difference']}; without the KV cache it is {same}. transformers "
            f"{transformers.__version__} is installed; this model was tested with {oldest} to {newest}."
        )


def judge_controls(figures: dict[str, Any], label: str) -> None:
    for control, difference in figures["negative_controls"].items():
        if not difference > CONTROL_FACTOR * figures["tolerance"]:
            raise VerificationError(
                f"{label}: the check is blind: with {control}, and the like in every other layer, it still found no "
                "difference."
            )
