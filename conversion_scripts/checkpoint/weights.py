"""A checkpoint: the name, dtype and shape of every tensor, known from the headers, and each read when it is needed."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...errors import CheckpointError, reason_of
from .files import INDEX_FILE, SINGLE_FILE, is_one_of, read_json

ADAPTER_FILE = "adapter_config.json"
# Not training_args.bin and optimizer.pt, which Trainer writes beside weights
PICKLED = ("pytorch_model*.bin", "model*.bin", "model*.pt", "consolidated*.pt", "*.pth")
NOT_TOGETHER = "Weights and config do not belong together."
SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass
class Checkpoint:
    """
    Weights with their config.

    Attributes:
        label: what the user calls it: a path or a Hub id.
        folder: where its files are on this machine.
        revision: the Hub commit they are of, None for local files.
        raw_config: config.json as it stands.
        files: the weight files.
        tensors: every tensor, on the meta device: its shape and dtype.
        unreadable: tensor -> its dtype, of those in dtypes that no weight is converted from.
        stored_names: tensor -> its name in the file, where that is another one.
    """

    label: str
    folder: Path
    revision: str | None
    raw_config: dict[str, Any]
    files: list[Path]
    tensors: dict[str, torch.Tensor]
    _where: dict[str, Path | torch.Tensor]  # the file; of what had to be read whole (GGUF), the tensor itself
    unreadable: dict[str, str] = field(default_factory=dict)
    stored_names: dict[str, str] = field(default_factory=dict)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the dtype that the checkpoint has it in, mapped from its file and not yet in memory."""
        where = self._where[name]
        if isinstance(where, torch.Tensor):
            return where
        with opened_shard(where) as shard:
            return shard.get_tensor(self.stored_names.get(name, name))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that Transformers loads it in: what config.json says, else that of the first weight."""
        said = self.raw_config.get("dtype") or self.raw_config.get("torch_dtype")
        if isinstance(said, str) and isinstance(
            dtype := getattr(torch, said.removeprefix("torch."), None), torch.dtype
        ):
            return dtype
        if not self.tensors:
            raise unreadable(self, next(iter(self.unreadable))) if self.unreadable else no_tensors(self.label)
        dtypes = {self.stored_names.get(name, name): tensor.dtype for name, tensor in self.tensors.items()}
        for file in sorted(each for each in self.files if each.suffix == ".safetensors"):
            with opened_shard(file) as shard:
                for name in shard.keys():
                    if name in dtypes:  # the first file may hold nothing of the language model
                        return dtypes[name]
        return next(iter(self.tensors.values())).dtype


def open_checkpoint(label: str, folder: Path, revision: str | None, raw_config: dict[str, Any]) -> Checkpoint:
    """The weights of a folder: index, headers, every tensor's dtype and shape. No weight is read yet."""
    files_of = shards_of_tensors(folder)
    tensors, others = {}, {}
    files = list(dict.fromkeys(files_of.values()))
    for file in files:
        with opened_shard(file) as shard:
            present = set(shard.keys())
            listed = {name for name, of in files_of.items() if of == file}
            for name in sorted(listed | present):
                if name not in present:
                    raise CheckpointError(f"{file}: lacks tensor {name!r}, which {INDEX_FILE} says it holds.")
                if name not in listed:
                    elsewhere = files_of[name].name if name in files_of else "no file"
                    raise CheckpointError(
                        f"{file}: holds tensor {name!r}, which {INDEX_FILE} says is in {elsewhere}. Which of them "
                        "counts cannot be known; download the checkpoint again."
                    )
                header = shard.get_slice(name)
                if header.get_dtype() not in SAFETENSORS_DTYPES:
                    others[name] = header.get_dtype()
                    continue
                dtype = getattr(torch, SAFETENSORS_DTYPES[header.get_dtype()])
                tensors[name] = torch.empty(header.get_shape(), dtype=dtype, device="meta")
    checkpoint = Checkpoint(label, folder, revision, raw_config, files, tensors, files_of, others)
    check_depth(checkpoint)
    return checkpoint


def unreadable(checkpoint: Checkpoint, name: str) -> CheckpointError:
    """Says that a weight has a dtype that cannot be converted."""
    return CheckpointError(
        f"{checkpoint.label}: tensor {name!r} is stored as {checkpoint.unreadable[name]}; only "
        f"{', '.join(SAFETENSORS_DTYPES)} can be converted. Dequantize the checkpoint first."
    )


def no_tensors(label: str) -> CheckpointError:
    return CheckpointError(f"{label}: its files hold no tensors; download the checkpoint again.")


def check_depth(checkpoint: Checkpoint) -> None:
    """Before anything is made for every layer of which a config speaks: it may speak of a billion."""
    said = checkpoint.raw_config.get("num_hidden_layers", checkpoint.raw_config.get("num_layers"))
    names = (*checkpoint.tensors, *checkpoint.unreadable)
    numbers = {match[1] for name in names if (match := re.search(r"(?:^|\.)layers?\.(\d+)\.", name))}
    if isinstance(said, int) and len(numbers) < said:
        raise CheckpointError(
            f"{checkpoint.label}: lacks layers: config.json says {said}, the weights have {len(numbers)}. "
            f"{NOT_TOGETHER}"
        )


def shards_of_tensors(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file it is in, from the index or from the single file."""
    weights = [name for name in (SINGLE_FILE, INDEX_FILE) if (folder / name).exists()]
    if len(weights) == 2 and set(read_weight_map(folder / INDEX_FILE).values()) != {SINGLE_FILE}:
        raise two_sets(str(folder))
    if weights and (folder / ADAPTER_FILE).exists():
        raise CheckpointError(
            f"{folder}: has {ADAPTER_FILE} beside full weights, and Transformers would attach that adapter. Merge it "
            "(PEFT's merge_and_unload), or move its files away."
        )
    if (folder / INDEX_FILE).exists():
        weight_map = read_weight_map(folder / INDEX_FILE)
        for file in sorted(set(weight_map.values())):
            if not os.path.exists(folder / file):  # no error of a name that no file can have
                raise CheckpointError(f"{folder}: lacks the shard {file}; download the checkpoint again.")
        return {name: folder / file for name, file in weight_map.items()}
    if (folder / SINGLE_FILE).exists():
        with opened_shard(folder / SINGLE_FILE) as shard:
            return dict.fromkeys(shard.keys(), folder / SINGLE_FILE)
    raise no_weights(str(folder), [file.name for file in folder.iterdir()])


def read_weight_map(index: Path) -> dict[str, str]:
    """Of an index: tensor name -> file name."""
    weight_map = read_json(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(each, str) for each in weight_map.values())
    ):
        raise CheckpointError(f"{index}: has no weight_map; download the checkpoint again.")
    for file in weight_map.values():
        if Path(file).name != file:
            raise CheckpointError(
                f"{index}: names the shard {file!r}, which does not lie beside it; only files beside the index are "
                "read. Put the shard there, and correct the index."
            )
    return weight_map


def two_sets(label: str) -> CheckpointError:
    return CheckpointError(
        f"{label}: has both {SINGLE_FILE} and {INDEX_FILE}, two sets of weights, of which tools read different ones. "
        "Remove the one that is not meant."
    )


def no_weights(label: str, names: list[str]) -> CheckpointError:
    """Why a folder or repository with these files has no weights to convert."""
    if any(is_one_of(name, [ADAPTER_FILE, "adapter_model*"]) for name in names):
        return CheckpointError(
            f"{label}: holds an adapter only. Merge it into its base model (PEFT's merge_and_unload), save that, and "
            "give its folder."
        )
    if any(is_one_of(name, PICKLED) for name in names):
        return CheckpointError(
            f"{label}: has pickled weights only, which may run code when read. Load it with Transformers, save it "
            "with save_pretrained, which writes safetensors, and convert that."
        )
    if others := sorted(name for name in names if name.endswith(".safetensors")):
        return CheckpointError(
            f"{label}: has neither {SINGLE_FILE} nor {INDEX_FILE}, and Transformers reads no others ({others[0]}). "
            f"Rename a single file to {SINGLE_FILE}; of several, download the index too."
        )
    return CheckpointError(f"{label}: has no weights: neither {SINGLE_FILE} nor {INDEX_FILE}.")


@contextmanager
def opened_shard(file: Path) -> Iterator[Any]:
    """`safe_open`, its failures as one sentence. The whole header is checked against the file's length on opening."""
    try:
        file.open("rb").close()  # safetensors says of every file that it may not open that there is none
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({reason_of(error)}).") from error
    try:
        with safe_open(file, framework="pt") as shard:
            yield shard
    except SafetensorError as error:
        raise CheckpointError(
            f"{file}: is not a whole safetensors file ({reason_of(error)}). It may be truncated; download it again."
        ) from error
