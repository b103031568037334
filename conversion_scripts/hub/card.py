"""The model card of a converted model: `model_card.md` at the root, filled from the report and the source's card."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ...errors import HubError, reason_of, told_as
from ..checkpoint.files import CARD_FILE, REPORT_FILE, read_json, write_text

TEMPLATE = Path(__file__).parents[2] / "model_card.md"
EVIDENCE = Path(__file__).parent / "evidence.md"  # made from the experiments' results by `python -m experiments.page`
PLACEHOLDER = "PATH_OR_REPO_ID"  # in the card's example, until the model is pushed
# What the templates of huggingface_hub and Trainer leave for a person to fill in.
UNFILLED = re.compile(r"\{\{.*?\}\}|\[?more information needed\]?", re.IGNORECASE)
CARRIED = ("license_name", "license_link", "language", "datasets")  # as true of the result as of the source


def source_card_data(folder: Path) -> ModelCardData:
    """What a card states that another one repeats; nothing if it is no valid card, and no licence then."""
    file = folder / CARD_FILE
    if not file.is_file():
        return ModelCardData()
    try:
        stated = ModelCard.load(file, ignore_metadata_errors=True).data  # such as of an old model-index
    except PermissionError:
        raise
    except Exception:  # YAML is anything, and nobody has checked yet that it is what a card has
        return ModelCardData()
    values = {key: plain(key, stated.get(key)) for key in ("license", *CARRIED, "base_model")}
    return ModelCardData(**{key: value for key, value in values.items() if value is not None})


def plain(key: str, value: Any) -> str | list[str] | None:
    """A text, or where a card has lists a list of texts, of a size that somebody may have written; else None."""
    if key == "language" and isinstance(value, bool | list):
        # YAML reads "no", Norwegian, as False.
        value = ["no" if each is False else each for each in (value if isinstance(value, list) else [value])]
    several = isinstance(value, list) and key in ("language", "datasets", "base_model", "license")
    texts = value if several else [value]
    if not texts or len(texts) > 1000 or not all(isinstance(text, str) and 0 < len(text) < 1000 for text in texts):
        return None
    return list(texts) if several else value


def write_card(folder: Path, source_folder: Path, report: dict[str, Any]) -> None:
    """Writes `folder`/README.md. The licence is what the source's own card states, else "unknown"."""
    write_text(folder / CARD_FILE, str(card_of(folder, source_card_data(source_folder), report)))


def refresh_card(folder: Path) -> None:
    """After `nexus verify`: the card of an unverified model now says what was checked, unless somebody edited it."""
    report_file = folder / REPORT_FILE
    report = read_json(report_file) if report_file.exists() else {}
    if not {"source", "model", "verification"} <= report.keys() or not (folder / CARD_FILE).exists():
        return
    before = {key: value for key, value in report.items() if key != "verification"}
    stated = source_card_data(folder)
    try:
        was, becomes = str(card_of(folder, stated, before)), str(card_of(folder, stated, report))
    except Exception:  # somebody has edited the report, which then says anything
        return
    if (folder / CARD_FILE).read_bytes() == was.encode(errors="backslashreplace"):
        write_text(folder / CARD_FILE, becomes)


def card_of(folder: Path, source_data: ModelCardData, report: dict[str, Any]) -> ModelCard:
    name, is_hub_id = report["source"]["name"], report["source"]["revision"] is not None
    source_name = name if is_hub_id else Path(name).name
    data = card_data(source_data, report, source_name)
    without_text = any(each.startswith("tokenizers") for each in report.get("verification", {}).get("skipped", []))
    has_text = (folder / "tokenizer_config.json").exists() and not without_text
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        source_name=source_name,
        source_url=f"https://huggingface.co/{name}" if is_hub_id else "#what-was-checked",
        placeholder=PLACEHOLDER,
        license_known=data.license != "unknown",
        evidence=EVIDENCE.read_text(encoding="utf-8").rstrip(),
        text="real text and random tokens" if has_text else "random tokens",
        **{key: value for key, value in report.items() if key not in data.to_dict()},
    )


def write_source_card(folder: Path, nexus_folder: Path, model_type: str) -> None:
    """The card of a model that was converted back: what its Nexus model's card states, and what was done."""
    stated = source_card_data(nexus_folder)
    data = ModelCardData(
        license=stated.get("license", "unknown"),
        **{key: stated.get(key) for key in CARRIED},
        library_name="transformers",
        pipeline_tag=stated.get("pipeline_tag", "text-generation"),
        base_model=stated.get("base_model"),
    )
    text = (
        f"# {nexus_folder.resolve().name}, as a {model_type} model\n\n"
        "`nexus convert --to-source` made it from a [Nexus](https://arxiv.org/abs/2512.03377) model whose gates are "
        "closed, or whose order is 1. It has the weights of that model and computes the same function. "
        "`conversion_report.json` has what was checked, and every hash.\n"
    )
    if data.license == "unknown":
        text += "\n**The licence is unknown to the converter.** Find it out before you use or share this model.\n"
    write_text(folder / CARD_FILE, f"---\n{data}\n---\n\n{text}")


def card_data(source_data: ModelCardData, report: dict[str, Any], source_name: str) -> ModelCardData:
    """The metadata: what the source's card states, what the conversion did, and what was measured."""
    name, revision = report["source"]["name"], report["source"]["revision"]
    carried = {key: source_data.get(key) for key in CARRIED}
    link = carried["license_link"]
    is_file = link and "://" not in link
    if is_file and revision and link.removeprefix("./") not in report.get("licence_files", []):
        carried["license_link"] = f"https://huggingface.co/{name}/blob/{revision}/{link.removeprefix('./')}"
    results = verification_results(report) if "verification" in report else None
    return ModelCardData(
        license=source_data.get("license", "unknown"),
        **carried,
        library_name="transformers",
        pipeline_tag=task_of(report),
        tags=["nexus", "higher-order-attention", "custom_code", "arxiv:2512.03377"],
        base_model=name if revision else source_data.get("base_model"),
        # The nearest that the Hub knows (adapter, finetune, merge, quantized). The text says that nothing was trained.
        base_model_relation="finetune" if revision else None,
        model_name=f"{source_name} with nested attention" if results else None,
        eval_results=results,
    )


def task_of(report: dict[str, Any]) -> str:
    return "fill-mask" if report["model"].get("is_encoder") else "text-generation"


def verification_results(report: dict[str, Any]) -> list[EvalResult]:
    """For the `model-index`. Named so that nobody takes equality with the source for a measure of quality."""
    figures = report["verification"]
    largest = figures["max_abs_logit_difference"]
    metrics = [
        ("max_abs_logit_difference", "Largest absolute difference of any logit from the source's", largest),
        ("mean_kl_divergence", "Mean KL divergence from the source, in nats", figures["mean_kl"]),
    ]
    return [
        EvalResult(
            task_type=task_of(report),
            task_name="Equality with the source model, gates closed (not a quality benchmark)",
            dataset_type="nexus-conversion-check",
            dataset_name=f"Passages of the conversion check, {figures['positions']} positions",
            metric_type=metric_type,
            metric_name=metric_name,
            metric_value=value,
        )
        for metric_type, metric_name, value in metrics
    ]


def card_for_repository(folder: Path, repo_id: str) -> bytes:
    """
    The card in `folder` as it is uploaded: its example names the repository. The file itself stays as it is.

    Raises:
        `HubError`: no card, metadata that are not valid, or something in it that was left to be filled in.
    """
    file = folder / CARD_FILE
    try:
        text = file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise HubError(
            f"{folder}: has no model card, README.md. Write one that says what the model was made from and trained on, "
            "under which licence."
        ) from None
    except UnicodeDecodeError as error:
        raise HubError(f"{file}: is not UTF-8 text ({reason_of(error)}).") from error
    with told_as(HubError, f"{file}: its metadata are not valid ({{reason}})."):
        if not ModelCard(text).data.to_dict():
            raise ValueError("there are none between two lines of ---")
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        in_code ^= line.lstrip().startswith("```")
        if not in_code and (unfilled := UNFILLED.search(line)):
            raise HubError(f"{file}: line {number} was left to be filled in ({unfilled[0]}); do so first.")
    return text.replace(PLACEHOLDER, repo_id).encode()
