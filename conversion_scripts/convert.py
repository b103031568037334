"""
From a standard checkpoint to a Nexus model folder that computes the same function until its gates open: open the
source, plan every tensor, write, verify in a fresh process, describe. `to_source.py` is the way back.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from ..configuration_nexus import NexusConfig
from ..errors import ConversionError, TokenizerError, told_as
from ..tokenization.carry_over import carry_over_tokenizer, keep_tokenizer_class, rebuild_gguf_tokenizer
from ..tokenization.check import check_tokenizer, remote_code
from .checkpoint.files import CODE_FILES, REPORT_FILE, ROOT, carry_licences, is_model_file, sha256, write_json
from .checkpoint.open import Source, open_source
from .checkpoint.output import failures_of_writing, staged_output
from .checkpoint.place import MODEL, check_free_space, check_output, expanded, is_our_model, output_path
from .checkpoint.plan import plan_nexus
from .checkpoint.report import added_parameters, describe_files, describe_plan, finished_report, state_of
from .checkpoint.shards import total_bytes
from .checkpoint.write import write_planned
from .hub.card import source_card_data, write_card
from .nesting import Nesting, nexus_config
from .verification.verify import verify_opened

GENERATION_FILE = "generation_config.json"


def convert(
    source: str | Path,
    out: str | Path,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    layer_by_layer: bool = False,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    revision: str | None = None,
    command: list[str] | None = None,
    dry_run: bool = False,
    **nesting_options: Any,
) -> dict[str, Any]:
    """
    Converts `source` to a Nexus model in the folder `out` and returns the report, which the folder keeps too.

    A run that was interrupted continues when it is started again with the same arguments. If `out` already is what it
    would write, by the hash of every file of source and result, nothing is written and the report says "unchanged".

    Args:
        source: a checkpoint folder, a Hub id, a .gguf file or a folder with one. It is only read.
        out: the folder to write, new or empty unless `overwrite`.
        dtype: of the written weights; None keeps the source's, tensor by tensor.
        verify: compare source and result in a fresh process, and fail unless they are equal.
        layer_by_layer: verify with one layer in memory at a time; done anyway if the models do not fit.
        overwrite: replace a model of ours at `out`.
        max_shard_size: of the safetensors files, in bytes or as in "5GB".
        revision: branch, tag or commit of a Hub id.
        command: the command line, for the report.
        dry_run: write nothing and return what would be done.
        nesting_options: how it is nested, the fields of `Nesting`: order, gate_init, inner_attention, ...

    Raises:
        `NexusError`: a `CheckpointError` if the source cannot be read or `out` not written, a `TokenizerError` if the
            tokenizer does not fit, a `ConversionError` if the model cannot be converted as asked, a `VerificationError`
            if the result is not the same function. Nothing is left at `out` then; what was there before still is.
    """
    out, nesting = output_path(out), Nesting(**nesting_options)
    check_output(out, MODEL, is_our_model, is_model_file, inputs=[expanded(source)])
    opened = open_source(source, revision, headers_only=dry_run)

    config = nexus_config(opened, nesting, dtype)
    plan = plan_nexus(opened, config, dtype, nesting.seed)
    tokenizer = None if opened.gguf_file else check_fitting(opened.folder, config)
    options = {
        **asdict(nesting),
        "dtype": dtype and str(dtype).removeprefix("torch."),
        "max_shard_size": max_shard_size,
        "code": {file: sha256(ROOT / file) for file in CODE_FILES},
    }
    if dry_run:
        described = describe_plan(out, opened, plan, options, source_card_data(opened.folder).get("license"))
        return described | {"model": described["model"] | nesting.describe(config)}
    if report := finished_report(out, opened, options):
        if verify and "verification" not in report:
            report["verification"] = verify_opened(opened, out, layer_by_layer)
            with failures_of_writing(out):
                write_json(out / REPORT_FILE, report)
                write_card(out, opened.folder, report)
        return report | {"unchanged": True}
    check_output(out, MODEL, is_our_model, is_model_file, overwrite=overwrite)
    check_free_space(out, total_bytes(plan))

    with staged_output(out, state_of(opened, plan, options)) as (folder, resume):
        report = write_planned(folder, resume, opened, plan, options, command)
        for file in CODE_FILES:
            shutil.copyfile(ROOT / file, folder / file)
        config.save_pretrained(folder)
        report["tokenizer_files"] = carry_over(opened, folder)
        report["licence_files"] = carry_licences(opened.folder, folder)
        report["tokenizer"] = tokenizer or check_fitting(folder, config)
        report["model"] |= nesting.describe(config) | added_parameters(plan)
        report["model"]["dtype"] = str(config.dtype).removeprefix("torch.")
        if opened.gguf_file is None and (kept := keep_tokenizer_class(opened.folder, folder)):
            report["tokenizer"]["warnings"].append(
                f"tokenizer_config.json now says tokenizer_class={kept}, which Transformers loads for "
                f"{opened.family.model_type} whatever that file says."
            )
        if opened.left_templates:
            report["tokenizer"]["warnings"].append(
                f"The chat templates {', '.join(opened.left_templates)} in {opened.gguf_file} were left behind: "
                "Transformers reads the default one only."
            )
        report["model"]["files"] = describe_files(folder, resume)

        if verify:
            report["verification"] = verify_opened(opened, folder, layer_by_layer, label=out)

        write_json(folder / REPORT_FILE, report)
        write_card(folder, opened.folder, report)
    return report | {"resumed": resume.used}


def check_fitting(folder: Path, config: NexusConfig) -> dict[str, Any]:
    """What `check_tokenizer` says of it. Raises `TokenizerError` if it cannot be carried over."""
    if code := remote_code(folder):
        raise TokenizerError(
            f"{folder}: its tokenizer needs code of its own ({code}), which nobody allowed to run. Remove the "
            "tokenizer files to convert the model alone, or save it with a class of Transformers."
        )
    return check_tokenizer(folder, config.vocab_size, generates=config.is_causal)


def carry_over(source: Source, folder: Path) -> list[str]:
    """Tokenizer and generation settings. Where the latter are in config.json, they get a file of their own."""
    if source.gguf_file is None:
        carried = carry_over_tokenizer(source.folder, folder)
        if GENERATION_FILE not in carried:
            file = source.folder / "config.json"
            with told_as(ConversionError, f"{file}: its generation settings are not valid ({{reason}})."):
                settings = GenerationConfig.from_model_config(dict(source.raw_config))
            settings.to_json_file(folder / GENERATION_FILE)
        return carried
    source.generation_config.save_pretrained(folder)
    return rebuild_gguf_tokenizer(source.folder / source.gguf_file, folder) if source.has_tokenizer else []
