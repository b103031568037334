"""
Opening a source: a local folder, a Hub id, or a GGUF file (or a folder with one). A `Checkpoint` knows the name, dtype
and shape of every tensor and reads them one by one; a `Source` is one of an architecture that becomes a Nexus model.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from ...errors import ConversionError, reason_of
from ..families import Family, family_of
from ..progress import quiet_when_piped

NOT_TOGETHER = "Weights and config do not belong together."
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
DOWNLOADED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*", "README.md"]


@dataclass
class Checkpoint:
    """
    Weights in safetensors or GGUF, with their config.

    Attributes:
        label: what the user calls it: a path or a Hub id.
        folder: where its files are on this machine.
        revision: the Hub commit they are of, None for local files.
        raw_config: config.json as it stands.
        files: the weight files. shapes, dtypes: of every tensor.
    """

    label: str
    folder: Path
    revision: str | None
    raw_config: dict[str, Any]
    files: list[Path]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    _files_of: dict[str, Path]

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the dtype that the checkpoint has it in, mapped from its file and not yet in memory."""
        with opened_shard(self._files_of[name]) as shard:
            return shard.get_tensor(name)

    @property
    def nbytes(self) -> int:
        return sum(torch.Size(shape).numel() * self.dtypes[name].itemsize for name, shape in self.shapes.items())

    @property
    def parameters(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the weights are in."""
        sizes: dict[torch.dtype, int] = {}
        for name, dtype in self.dtypes.items():
            sizes[dtype] = sizes.get(dtype, 0) + torch.Size(self.shapes[name]).numel()
        return max(sizes, key=sizes.get)


@dataclass
class Source(Checkpoint):
    """
    A checkpoint that can become a Nexus model.

    Attributes, besides those of `Checkpoint`:
        family: how this architecture translates to Nexus.
        config: Transformers' reading of config.json.
        gguf_file: name of the GGUF file in `folder`, if it is one; its generation settings are `generation_config`.
    """

    family: Family
    config: Any
    gguf_file: str | None = None
    generation_config: GenerationConfig | None = None
    _dense: dict[str, torch.Tensor] | None = None

    def read(self, name: str) -> torch.Tensor:
        return super().read(name) if self._dense is None else self._dense[name]


def open_source(source: str | Path, revision: str | None = None) -> Source:
    """Raises `ConversionError` for anything that cannot be read as a checkpoint of a causal language model."""
    source = str(source)
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return open_gguf(source, path)
    if path.is_dir():
        folder, revision = path, None
    elif path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ConversionError(
            f"{source}: no such folder. Give a checkpoint folder, a .gguf file, or a Hub id such as user/name."
        )
    else:
        folder, revision = download(source, revision)
    gguf_files = sorted(folder.glob("*.gguf"))
    if gguf_files and not any(folder.glob("*.safetensors")):
        if len(gguf_files) > 1:
            names = ", ".join(file.name for file in gguf_files)
            raise ConversionError(
                f"{folder}: has several GGUF files ({names}); give the path of one of them as SOURCE."
            )
        return open_gguf(source, gguf_files[0])
    return open_safetensors(source, folder, revision)


def download(repo_id: str, revision: str | None) -> tuple[Path, str]:
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=DOWNLOADED_FILES))
    except GatedRepoError as error:
        raise ConversionError(
            f"{repo_id}: is gated on the Hub; accept its terms on its page and log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ConversionError(f"{repo_id}: has no revision {revision!r} on the Hub.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConversionError(
            f"{repo_id}: no such folder here, and no such model on the Hub that this account may see. Check the "
            "spelling, or log in with `hf auth login` if it is private."
        ) from error
    except OSError as error:
        raise ConversionError(f"{repo_id}: could not be downloaded from the Hub ({reason_of(error)}).") from error
    return folder, folder.name


def open_safetensors(label: str, folder: Path, revision: str | None) -> Source:
    raw_config = read_json(folder / "config.json", "is this a checkpoint folder?")
    if "quantization_config" in raw_config:
        method = raw_config["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise ConversionError(
            f"{folder}: is quantized ({method}). Load it with Transformers, call model.dequantize(), save it, and "
            "convert that."
        )
    check_links(folder)
    family = family_of(raw_config.get("model_type"))
    checkpoint = open_checkpoint(label, folder, revision, raw_config)
    return Source(**vars(checkpoint), family=family, config=read_config(folder, raw_config))


def check_links(folder: Path) -> None:
    """
    Raises `ConversionError` if a link leads out of the folder: what it leads to would be copied, and perhaps published.
    The links of the Hub's cache lead to its blobs.
    """
    allowed = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        allowed.append(folder.resolve().parent.parent / "blobs")
    for file in folder.rglob("*"):
        if file.is_symlink() and not any(file.resolve().is_relative_to(place) for place in allowed):
            raise ConversionError(
                f"{file}: is a symbolic link out of the folder, to {file.resolve()}; copy the file itself there."
            )


def open_checkpoint(label: str, folder: Path, revision: str | None, raw_config: dict[str, Any]) -> Checkpoint:
    """The weights of a folder: index, headers, every tensor's dtype and shape. No weight is read yet."""
    files_of = shards_of_tensors(folder)
    shapes, dtypes = {}, {}
    files = list(dict.fromkeys(files_of.values()))
    for file in files:
        with opened_shard(file) as shard:
            present = set(shard.keys())
            listed = {name for name, of in files_of.items() if of == file}
            for name in sorted(listed | present):
                if name not in present:
                    raise ConversionError(f"{file}: lacks tensor {name!r}, which {INDEX_FILE} says it holds.")
                if name not in listed:
                    elsewhere = files_of[name].name if name in files_of else "no file"
                    raise ConversionError(
                        f"{file}: holds tensor {name!r}, which {INDEX_FILE} says is in {elsewhere}. Which of them "
                        "counts cannot be known; download the checkpoint again."
                    )
                tensor = shard.get_slice(name)
                shapes[name] = tuple(tensor.get_shape())
                dtypes[name] = getattr(torch, SAFETENSORS_DTYPES.get(tensor.get_dtype(), ""), None)
                if dtypes[name] is None:
                    raise ConversionError(
                        f"{file}: tensor {name!r} is stored as {tensor.get_dtype()}; only "
                        f"{', '.join(SAFETENSORS_DTYPES)} can be converted. Dequantize the checkpoint first."
                    )
    checkpoint = Checkpoint(label, folder, revision, raw_config, files, shapes, dtypes, files_of)
    check_depth(checkpoint)
    return checkpoint


def check_depth(checkpoint: Checkpoint) -> None:
    """Before anything is made for every layer of which a config speaks: it may speak of a billion."""
    said = checkpoint.raw_config.get("num_hidden_layers", checkpoint.raw_config.get("num_layers"))
    numbers = {match[1] for name in checkpoint.shapes if (match := re.search(r"\.layers\.(\d+)\.", name))}
    if isinstance(said, int) and len(numbers) < said:
        raise ConversionError(
            f"{checkpoint.label}: lacks layers: config.json says {said}, the weights have {len(numbers)}. "
            f"{NOT_TOGETHER}"
        )


SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_config(folder: Path, raw_config: dict[str, Any]) -> Any:
    try:
        return AutoConfig.for_model(**raw_config)
    except Exception as error:
        raise ConversionError(f"{folder / 'config.json'}: Transformers rejects it ({reason_of(error)}).") from error


def shards_of_tensors(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file it is in, from the index or from the single file."""
    if (folder / INDEX_FILE).exists():
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(file, str) for file in weight_map.values())
        ):
            raise ConversionError(f"{folder / INDEX_FILE}: has no weight_map; download the checkpoint again.")
        for file in sorted(set(weight_map.values())):
            if Path(file).name != file:
                raise ConversionError(f"{folder / INDEX_FILE}: {file!r} points out of the folder; this is not safe.")
            if not (folder / file).exists():
                raise ConversionError(f"{folder}: lacks the shard {file}; download the checkpoint again.")
        return {name: folder / file for name, file in weight_map.items()}
    if (folder / SINGLE_FILE).exists():
        with opened_shard(folder / SINGLE_FILE) as shard:
            return dict.fromkeys(shard.keys(), folder / SINGLE_FILE)
    if (folder / "adapter_config.json").exists():
        raise ConversionError(
            f"{folder}: holds an adapter only. Merge it into its base model (PEFT's merge_and_unload) and convert that."
        )
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise ConversionError(
            f"{folder}: has pickled weights only, which may run code when read. Load it with Transformers, save it "
            "with save_pretrained, which writes safetensors, and convert that."
        )
    raise ConversionError(f"{folder}: has no weights: neither {SINGLE_FILE} nor {INDEX_FILE}.")


@contextmanager
def opened_shard(file: Path) -> Iterator[Any]:
    """`safe_open`, its failures as one sentence. The whole header is checked against the file's length on opening."""
    try:
        file.open("rb").close()  # safetensors says of every file that it may not open that there is none
    except OSError as error:
        raise ConversionError(f"{file}: cannot be read ({error.strerror}).") from error
    try:
        with safe_open(file, framework="pt") as shard:
            yield shard
    except SafetensorError as error:
        raise ConversionError(
            f"{file}: is not a whole safetensors file ({reason_of(error)}). It may be truncated; download it again."
        ) from error


def open_gguf(label: str, file: Path) -> Source:
    """
    A GGUF file, read and dequantized to float32 by Transformers. All of it is in memory, unlike a safetensors source.
    """
    try:
        with quiet_when_piped():  # the reader has a progress bar of its own
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except ImportError as error:
        raise ConversionError(f"{file}: reading GGUF needs the package gguf: `pip install gguf`.") from error
    except Exception as error:
        raise ConversionError(f"{file}: Transformers cannot read this GGUF file ({reason_of(error)}).") from error
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    raw_config = model.config.to_diff_dict()
    for added_by_the_reader in ("quantization_config", "_model_name_or_path"):
        raw_config.pop(added_by_the_reader, None)
    return Source(
        label=label,
        folder=file.parent,
        revision=None,
        family=family_of(model.config.model_type),
        raw_config=raw_config,
        config=model.config,
        _files_of={},
        files=[file],
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        dtypes={name: tensor.dtype for name, tensor in tensors.items()},
        gguf_file=file.name,
        generation_config=model.generation_config,
        _dense=tensors,
    )


def read_json(file: Path, hint: str = "download the checkpoint again") -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConversionError(f"{file.parent}: has no {file.name}; {hint}.") from error
    except OSError as error:
        raise ConversionError(f"{file}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{file}: is not valid JSON ({reason_of(error)}).") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{file}: is not a JSON object.")
    return content
