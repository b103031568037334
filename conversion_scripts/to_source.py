"""The way back: from a Nexus model of order 1, or with closed gates, to a standard checkpoint of its family."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..configuration_nexus import NexusConfig
from ..errors import ConversionError, reason_of
from ..tokenization import carry_over_tokenizer
from .checkpoint.output import REPORT_FILE, check_output
from .checkpoint.pipeline import produce
from .checkpoint.plan import plan_source
from .checkpoint.source import Checkpoint, open_checkpoint, open_source, read_json
from .families import FAMILIES, family_of
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
) -> dict[str, Any]:
    """
    Converts the Nexus model in the folder `nexus` to a checkpoint that Transformers loads without our code, and returns
    the report. Every tensor keeps its dtype. The arguments are those of `convert`; `family` is the model_type to
    become, by default the one that conversion_report.json says it came from.

    Raises:
        `ConversionError`: besides what `convert` raises it for, a gate that is not closed: no standard model computes
            that function.
    """
    nexus, out = Path(nexus), Path(out)
    check_output(out, nexus)
    opened, config = open_nexus(nexus)
    check_standard(opened, config)
    target = family_of(family or family_of_report(nexus))
    source_config = target.source_config(config)
    source_config.architectures = [architecture_of(source_config)]
    source_config.dtype = opened.dtype
    plan = plan_source(opened, target, config, source_config)
    options = {"to_source": target.model_type, "max_shard_size": max_shard_size}

    def fill(folder: Path, report: dict[str, Any]) -> None:
        source_config.save_pretrained(folder)
        report["model"] = {"dtype": str(opened.dtype).removeprefix("torch.")} | report["model"]
        report["tokenizer_files"] = carry_over_tokenizer(nexus, folder)

    return produce(
        out,
        opened,
        plan,
        options,
        fill,
        check=(lambda folder: verify_opened(open_source(folder), nexus, layer_by_layer)) if verify else None,
        describe=lambda folder, report: None,
        overwrite=overwrite,
        command=command,
        dry_run=dry_run,
    )


def open_nexus(folder: Path) -> tuple[Checkpoint, NexusConfig]:
    raw = read_json(folder / "config.json", "is this a Nexus model?")
    if raw.get("model_type") != "nexus":
        raise ConversionError(f"{folder}: is not a Nexus model (model_type={raw.get('model_type')!r}).")
    try:
        config = NexusConfig.from_dict(raw)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConversionError(f"{folder / 'config.json'}: {reason_of(error)}.") from error
    return open_checkpoint(str(folder), folder, None, raw), config


def check_standard(nexus: Checkpoint, config: NexusConfig) -> None:
    """Raises `ConversionError` unless the model computes what its last levels alone compute."""
    if max(config.layer_orders) == 1:
        return
    if not config.source_gate:
        raise ConversionError(
            f"{nexus.label}: is nested without gates (attention_order={config.attention_order}), which no standard "
            "model computes. Only models of order 1 or with closed gates can be converted back."
        )
    gates = {name: nexus.read(name).item() for name in nexus.shapes if ".source_norm." in name}
    opened = {name: gate for name, gate in gates.items() if gate != 0}
    if opened:
        name = max(opened, key=lambda name: abs(opened[name]))
        raise ConversionError(
            f"{nexus.label}: {len(opened)} of its {len(gates)} gates are open (the widest: {name} = "
            f"{opened[name]:.3g}), and no standard model computes that. Only models of order 1 or with closed gates "
            "can be converted back."
        )


def family_of_report(folder: Path) -> str:
    report = read_json(folder / REPORT_FILE) if (folder / REPORT_FILE).exists() else {}
    try:
        return report["source"]["model_type"]
    except (KeyError, TypeError):
        raise ConversionError(
            f"{folder}: has no {REPORT_FILE} that says what it came from; pass --family, one of "
            f"{', '.join(sorted(FAMILIES))}."
        ) from None


def architecture_of(source_config: Any) -> str:
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[source_config.model_type]
