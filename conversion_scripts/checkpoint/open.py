"""
Opens a model, wherever it is: a local folder, a Hub id, or a GGUF file (or a folder with one). A `Source` is of an
architecture that becomes a Nexus model; a `Nexus` is one. Only headers and configs are read.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from ...configuration_nexus import AUTO_MAP, NexusConfig
from ...errors import CheckpointError, ConversionError, NexusError, told_as
from ..families import Family, family_of
from ..families.wrapped import WRAPPERS, language_model, name_in_language_model, raw_language_model
from .code import check_config
from .download import download
from .files import CARD_FILE, check_file, check_files, is_gguf, read_json
from .gguf import read_gguf
from .place import expanded
from .weights import ADAPTER_FILE, Checkpoint, no_weights, open_checkpoint

AUTO_CLASSES = {reference.split(".")[-1]: auto_class for auto_class, reference in AUTO_MAP.items()}


@dataclass(kw_only=True)
class Source(Checkpoint):
    """
    A checkpoint that can become a Nexus model.

    Attributes, besides those of `Checkpoint`:
        family: how this architecture translates to Nexus.
        config: Transformers' reading of config.json.
        gguf_file: name of the GGUF file in `folder`, if it is one; its generation settings are `generation_config`.
        has_tokenizer: whether that file holds a tokenizer.
        left_templates: chat templates in it that Transformers does not read.
        wrapper: the model_type in config.json, if that is a model of images too, of which this is the language model.
    """

    family: Family
    config: Any
    gguf_file: str | None = None
    generation_config: GenerationConfig | None = None
    has_tokenizer: bool = True
    left_templates: list[str] = field(default_factory=list)
    wrapper: str | None = None

    def nexus_fields(self) -> dict[str, Any]:
        """
        The decoder fields of the Nexus config, of which some families have a few in their weights. Raises `NexusError`
        if config.json says what makes none.
        """
        useless = (
            f"{self.label}: config.json: a setting is of no use ({{kind}}: {{reason}}); download the checkpoint again."
        )
        with told_as(ConversionError, useless):  # one of a type that nobody expects
            fields = self.family.nexus_config(self.raw_config, self.config)
        config = self.decoder_config(fields)
        return fields | {name: read(self, config) for name, read in self.family.in_weights.items()}

    def decoder_config(self, fields: dict[str, Any]) -> NexusConfig:
        """Of order 1. Raises `ConversionError`."""
        with told_as(ConversionError, f"{self.label}: does not make a Nexus model: {{reason}}."):
            return NexusConfig(**fields, attention_order=1)


@dataclass(kw_only=True)
class Nexus(Checkpoint):
    """A checkpoint of a Nexus model, and its config."""

    config: NexusConfig

    @property
    def architecture(self) -> str:
        """The class that the weights were saved from. Raises `CheckpointError` if it is none of ours."""
        usual = "NexusForCausalLM" if self.config.is_causal else "NexusForMaskedLM"
        named = self.raw_config.get("architectures") or [usual]
        if not isinstance(named, list) or not isinstance(named[0], str) or named[0] not in AUTO_CLASSES:
            raise CheckpointError(
                f"{self.folder / 'config.json'}: architectures is {named!r}, none of {', '.join(AUTO_CLASSES)}."
            )
        return named[0]


def open_source(model: str | Path, revision: str | None = None, headers_only: bool = False) -> Source:
    """
    `headers_only`: do not download the weights of a Hub id, only their names, dtypes and shapes. Raises
    `CheckpointError` for anything that cannot be read as a checkpoint of a causal language model.
    """
    place, revision = locate(str(model), revision, headers_only)
    named = revision is not None or place.name not in ("", "..")  # "." is no name for a card
    return open_place(str(model) if named else str(place.resolve()), place, revision)


def open_place(label: str, place: Path, revision: str | None) -> Source:
    """`place` and `revision`: from `locate`."""
    if place.is_file():
        check_file(place.parent / CARD_FILE)  # and licences; what else is there is of other models
        return open_gguf(label, place)
    check_files(place)
    gguf_files = sorted(filter(is_gguf, place.iterdir()))
    if gguf_files and not any(place.glob("*.safetensors")):
        if len(gguf_files) > 1:
            names = ", ".join(file.name for file in gguf_files)
            raise CheckpointError(f"{place}: has several GGUF files ({names}); give the path of one of them as SOURCE.")
        return open_gguf(label, gguf_files[0])
    try:
        return open_safetensors(label, place, revision)
    except NexusError as error:  # of a Hub id, the user knows no folder; for a plan it does not even stay
        raise error if revision is None else type(error)(str(error).replace(str(place), label)) from error


def open_nexus(folder: Path, label: str | None = None, revision: str | None = None) -> Nexus:
    """
    `label` and `revision`: if the folder came from the Hub, what the user called it and its commit.

    Raises:
        `CheckpointError`: it is no Nexus model. Whether it has the right tensors is what `check_tensors` says.
    """
    label = label or str(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{label}: no such folder. Give the folder of a Nexus model; download one from the Hub first."
        )
    check_files(folder)
    refuse_adapter(folder, label)
    raw = read_json(folder / "config.json", "a Nexus model has one")
    if raw.get("model_type") != "nexus":
        raise CheckpointError(
            f"{label}: is not a Nexus model (model_type={raw.get('model_type')!r}). Convert it first: nexus convert "
            f"{label} OUT."
        )
    check_config(folder / "config.json", raw)
    with told_as(CheckpointError, f"{folder / 'config.json'}: {{reason}}."):
        config = NexusConfig.from_dict(raw)
    return Nexus(**vars(open_checkpoint(label, folder, revision, raw)), config=config)


def locate(model: str, revision: str | None = None, headers_only: bool = False) -> tuple[Path, str | None]:
    """A folder or .gguf file on this machine, downloaded if `model` is a Hub id, and the Hub commit that it is of."""
    path = expanded(model)
    if path.is_dir() or (path.is_file() and is_gguf(path)):
        if revision is not None:
            raise CheckpointError(
                f"--revision {revision}: has a meaning for a Hub id only, and {model} is on this machine. Leave it out."
            )
        return path, None
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CheckpointError(f"{model}: no such folder. Give the folder of a model, or a Hub id such as user/name.")
    return download(model, revision, headers_only)


def refuse_adapter(folder: Path, label: str) -> None:
    """Raises `CheckpointError` for what training with LoRA leaves."""
    if (folder / ADAPTER_FILE).exists() and not (folder / "config.json").exists():
        raise no_weights(label, [ADAPTER_FILE])


def open_safetensors(label: str, folder: Path, revision: str | None) -> Source:
    refuse_adapter(folder, label)
    raw_config = read_json(folder / "config.json", "a checkpoint has one, so give its folder")
    for part in (raw_config, *raw_config.values()):  # of a model of several, each has one of its own
        if isinstance(part, dict):
            check_config(folder / "config.json", part)
    wrapper = raw_config["model_type"] if raw_config.get("model_type") in list(WRAPPERS) else None
    said = raw_language_model(raw_config) if wrapper else raw_config
    if said.get("model_type") == "nexus":
        raise CheckpointError(
            f"{label}: is a Nexus model already. Give a standard checkpoint as SOURCE, or convert this one back with "
            "nexus convert --to-source."
        )
    family = family_of(said.get("model_type"), f"{folder / 'config.json'}: model_type=")
    checkpoint = open_checkpoint(label, folder, revision, said)
    if wrapper:
        rename(checkpoint, name_in_language_model)
    checkpoint = with_prefix(checkpoint, family)
    with told_as(CheckpointError, f"{folder / 'config.json'}: Transformers rejects it ({{reason}})."):
        config = AutoConfig.for_model(**raw_config)
        if wrapper:
            # Mistral 3 is tied where nothing is said, and has a head of its own all the same.
            unsaid = raw_config.get("tie_word_embeddings") is None and "lm_head.weight" in checkpoint.tensors
            config = language_model(config, family.model_type, config.tie_word_embeddings and not unsaid)
    if config.tie_word_embeddings:
        name_tied(checkpoint, family)
    return Source(**vars(checkpoint), family=family, config=config, wrapper=wrapper)


def with_prefix(checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """
    The names of a causal language model, where the files have those of its decoder alone, as embedding models do
    ("layers.0..." for "model.layers.0..."). Transformers loads both.
    """
    if any(name.startswith(family.prefix) for name in checkpoint.tensors):
        return checkpoint

    def named(name: str) -> str:
        return family.prefix + name if name not in family.weights and family.knows(family.prefix + name) else name

    rename(checkpoint, named)
    return checkpoint


def name_tied(checkpoint: Checkpoint, family: Family) -> None:
    """Of two tied weights that are stored once, safetensors' own `save_model` keeps the first name, the head's."""
    heads, (embedding,) = (family.sources_of(f"{name}.weight") for name in ("lm_head", "model.embed_tokens"))
    if embedding not in checkpoint.tensors:
        rename(checkpoint, lambda name: embedding if name in heads else name)


def rename(checkpoint: Checkpoint, named: Callable[[str], str | None]) -> None:
    """
    The files keep their names. What is named None is left out. Raises `CheckpointError` for two tensors of one name, of
    which one would be lost.
    """
    first: dict[str, str] = {}
    for name in (*checkpoint.tensors, *checkpoint.unreadable):
        if (to := named(name)) is not None and first.setdefault(to, name) != name:
            raise CheckpointError(
                f"{checkpoint.label}: holds {to!r} twice, as {first[to]!r} and as {name!r}. Which of them counts "
                "cannot be known; remove the one that is not meant."
            )
    checkpoint.stored_names = {
        to: checkpoint.stored_names.get(name, name) for name in checkpoint.tensors if (to := named(name)) is not None
    }
    for part in ("tensors", "unreadable", "_where"):
        renamed = {to: value for name, value in getattr(checkpoint, part).items() if (to := named(name)) is not None}
        setattr(checkpoint, part, renamed)


def open_gguf(label: str, file: Path) -> Source:
    model, has_tokenizer, left_templates = read_gguf(file)
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    raw_config = model.config.to_diff_dict()
    for added_by_the_reader in ("quantization_config", "_model_name_or_path"):
        raw_config.pop(added_by_the_reader, None)
    return Source(
        label,
        file.parent,
        None,
        raw_config,
        [file],
        {name: tensor.to("meta") for name, tensor in tensors.items()},
        tensors,
        family=family_of(model.config.model_type, f"{file}: model_type="),
        config=model.config,
        gguf_file=file.name,
        generation_config=model.generation_config,
        has_tokenizer=has_tokenizer,
        left_templates=left_templates,
    )
