"""The way back: from a Nexus model of order 1, or with closed gates, to a standard checkpoint of its family."""

from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..errors import ConversionError
from ..tokenization.carry_over import carry_over_tokenizer
from .checkpoint.added import is_gate
from .checkpoint.code import check_code
from .checkpoint.files import REPORT_FILE, carry_licences, is_model_file, read_json, write_json
from .checkpoint.open import Nexus, open_nexus, open_source
from .checkpoint.output import failures_of_writing, staged_output
from .checkpoint.place import MODEL, check_free_space, check_output, expanded, is_our_model, output_path
from .checkpoint.plan import check_tensors, plan_source
from .checkpoint.report import describe_files, describe_plan, finished_report, state_of
from .checkpoint.shards import total_bytes
from .checkpoint.write import write_planned
from .families import FAMILIES, Family, family_of
from .families.spellings import with_old_spellings
from .hub.card import source_card_data, write_source_card
from .verification.verify import verify_opened


def convert_to_source(
    nexus: str | Path,
    out: str | Path,
    family: str | None = None,
    verify: bool = True,
    layer_by_layer: bool = False,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    command: list[str] | None = None,
    dry_run: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """
    Converts the Nexus model in the folder `nexus` to a checkpoint that Transformers loads without our code, and returns
    the report. Every tensor keeps its dtype. The arguments are those of `convert`; `family` is the model_type to
    become, by default the one that conversion_report.json says it came from, and `trust_remote_code` allows to run
    code in `nexus` that is not ours, to verify.

    Raises:
        `ConversionError`: besides what `convert` raises it for, a gate that is not closed: no standard model computes
            that function.
    """
    nexus, out = expanded(nexus), output_path(out)
    check_output(out, MODEL, is_our_model, is_model_file, inputs=[nexus])
    opened = open_nexus(nexus)
    check_code(nexus, opened.raw_config, trust_remote_code)
    check_tensors(opened, "NexusForCausalLM" if opened.config.is_causal else "NexusForMaskedLM")  # gates too
    check_standard(opened)

    target = family_of(family, "--family=") if family else family_of_report(nexus)
    source_config = target.source_config(opened.config)
    classes = MODEL_FOR_MASKED_LM_MAPPING_NAMES if target.is_encoder else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    source_config.architectures = [classes[source_config.model_type]]
    source_config.dtype = opened.dtype
    plan = plan_source(opened, target, source_config)
    options = {"to_source": target.model_type, "max_shard_size": max_shard_size}
    if dry_run:
        return describe_plan(out, opened, plan, options, source_card_data(nexus).get("license"))
    if report := finished_report(out, opened, options):
        if verify and "verification" not in report:
            report["verification"] = verify_opened(open_source(out), nexus, layer_by_layer, trust_remote_code)
            with failures_of_writing(out):
                write_json(out / REPORT_FILE, report)
        return report | {"unchanged": True}
    check_output(out, MODEL, is_our_model, is_model_file, overwrite=overwrite)
    check_free_space(out, total_bytes(plan))

    with staged_output(out, state_of(opened, plan, options)) as (folder, resume):
        report = write_planned(folder, resume, opened, plan, options, command)
        source_config.save_pretrained(folder)
        write_json(folder / "config.json", with_old_spellings(read_json(folder / "config.json")))
        report["tokenizer_files"] = carry_over_tokenizer(nexus, folder)
        report["licence_files"] = carry_licences(nexus, folder)
        report["model"] |= {
            "dtype": str(opened.dtype).removeprefix("torch."),
            "files": describe_files(folder, resume),
        }

        if verify:
            report["verification"] = verify_opened(open_source(folder), nexus, layer_by_layer, trust_remote_code)

        write_source_card(folder, nexus, target.model_type)
        write_json(folder / REPORT_FILE, report)
    return report | {"resumed": resume.used}


def check_standard(nexus: Nexus) -> None:
    """Raises `ConversionError` unless the model computes what its last levels alone compute."""
    config = nexus.config
    if max(config.layer_orders) == 1:
        return
    if not config.inner_gate:
        raise ConversionError(
            f"{nexus.label}: is nested without gates (attention_order={config.attention_order}), which no standard "
            "model computes. Only models of order 1 or with closed gates can be converted back."
        )
    gates = {name: nexus.read(name).item() for name in nexus.tensors if is_gate(name)}
    opened = {name: gate for name, gate in gates.items() if gate != 0}
    if opened:
        name = max(opened, key=lambda name: abs(opened[name]))
        raise ConversionError(
            f"{nexus.label}: {len(opened)} of its {len(gates)} gates are open (the widest: {name} = "
            f"{opened[name]:.3g}), and no standard model computes that. Only models of order 1 or with closed gates "
            "can be converted back."
        )


def family_of_report(folder: Path) -> Family:
    report = read_json(folder / REPORT_FILE) if (folder / REPORT_FILE).exists() else {}
    try:
        model_type = report["source"]["model_type"]
    except (KeyError, TypeError):
        raise ConversionError(
            f"{folder}: has no {REPORT_FILE} that says what it came from; pass --family, one of "
            f"{', '.join(sorted(FAMILIES))}."
        ) from None
    return family_of(model_type, f"{folder / REPORT_FILE}: model_type=")
