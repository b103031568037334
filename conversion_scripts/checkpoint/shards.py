"""
Writing safetensors shards one tensor at a time. `safetensors.torch.save_file` makes the same bytes, and where tensors
go from file to file unchanged it holds none of them. But it takes a shard as a whole: with `--dtype` or fused weights
to split, all of it is in memory. Measured with safetensors 0.8 on a shard of 1.6 GB (peak memory of the process; 278 MB
after the imports):

                             unchanged                              float32 -> bfloat16
    save_file                1862 MB (1.7 GB of it mapped pages)    2651 MB (0.9 GB held)
    write_shard              527 MB                                 532 MB

In the same pass it refuses values that no model has, hashes what it writes, and moves the progress bar.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards

from ...errors import CheckpointError, reason_of
from .files import INDEX_FILE, is_complete, write_json
from .output import Resume
from .weights import SAFETENSORS_DTYPES

DTYPE_NAMES = {getattr(torch, name): code for code, name in SAFETENSORS_DTYPES.items()}
PIECE = 1 << 19  # elements handled at a time: one or two MB; Linux took four times as long to write 32 MB at a time


@dataclass(frozen=True)
class Planned:
    """
    One tensor to write.

    Attributes:
        tensor: on the meta device, with the dtype to write and the shape that it will have.
        read: gives the tensor, in any dtype. origin: names where it comes from, for messages.
    """

    tensor: torch.Tensor
    read: Callable[[], torch.Tensor]
    origin: str


def write_weights(
    folder: Path, plan: dict[str, Planned], advance: Callable[[int], None], resume: Resume, max_shard_size: int | str
) -> dict[str, Any]:
    """
    Writes shards and, if there are several, their index. One tensor is in memory at a time.

    Args:
        plan: the tensors by name.
        advance: called with the bytes of each piece that is done.
        resume: shards that an earlier run finished; those whose hash is still right are not written again.
        max_shard_size: as in `save_pretrained`. A tensor larger than that has a shard of its own.

    Returns: "bytes", the total size of the tensors, and "shards", the names of the files.
    """
    layout = shard_layout(plan, max_shard_size)
    for file, names in layout.filename_to_tensors.items():
        content = {name: plan[name] for name in names}
        if is_complete(folder / file, resume.shards.get(file)):
            resume.used.append(file)
            advance(total_bytes(content))
            continue
        temporary = folder / f"{file}.part"
        description = write_shard(temporary, content, advance)
        temporary.rename(folder / file)
        resume.add(file, description)
    if layout.is_sharded:
        write_json(folder / INDEX_FILE, {"metadata": layout.metadata, "weight_map": layout.tensor_to_filename})
    return {"bytes": total_bytes(plan), "shards": sorted(layout.filename_to_tensors)}


def shard_layout(plan: dict[str, Planned], max_shard_size: int | str) -> Any:
    """huggingface_hub's, by which `save_pretrained` divides a model too. Raises `CheckpointError` on a bad size."""
    tensors = {name: planned.tensor for name, planned in plan.items()}
    try:
        if str(max_shard_size).strip().startswith("-"):
            raise ValueError
        return split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    except (ValueError, OverflowError) as error:
        raise CheckpointError(f"--max-shard-size {max_shard_size}: give a size such as 5GB or 200MB.") from error


def total_bytes(plan: dict[str, Planned]) -> int:
    return sum(planned.tensor.nbytes for planned in plan.values())


def write_shard(file: Path, content: dict[str, Planned], advance: Callable[[int], None]) -> dict[str, Any]:
    """Returns the file's size and hash; the hash is of what was meant to be written, not of what came to lie there."""
    tensors = {name: planned.tensor for name, planned in content.items()}
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # larger items first: all are aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        dtype = DTYPE_NAMES[tensors[name].dtype]
        header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)

    digest = hashlib.sha256(len(encoded).to_bytes(8, "little") + encoded)
    with file.open("wb") as stream, one_thread():
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            for block in pieces(content[name]):
                digest.update(block)
                stream.write(block)
                advance(len(block))
        return {"bytes": stream.tell(), "sha256": digest.hexdigest()}


def pieces(planned: Planned) -> Iterator[memoryview]:
    """The tensor's bytes, piece by piece, so that no second copy of it is ever whole in memory."""
    dtype = planned.tensor.dtype
    try:
        tensor = planned.read()
    except OSError as error:
        raise CheckpointError(f"{planned.origin}: could not be read ({reason_of(error)}).") from error
    for piece in tensor.reshape(-1).split(PIECE):
        converted = piece.to(dtype)
        if not is_finite(converted):
            if is_finite(piece):
                kind = f"values too large for {str(dtype).removeprefix('torch.')}; choose another --dtype"
            else:
                kind = ("NaN" if torch.isnan(piece).any() else "infinite values") + "; the checkpoint is broken"
            raise CheckpointError(f"{planned.origin} holds {kind}.")
        yield memoryview(converted.contiguous().view(torch.uint8).numpy())


def is_finite(piece: torch.Tensor) -> bool:
    """Both extremes are NaN if any value is. `torch.isfinite` of all would take most of the time of a conversion."""
    return piece.numel() == 0 or all(torch.isfinite(extreme) for extreme in torch.aminmax(piece))


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's others would wait for the next piece in a busy loop, on cores that hashing the source needs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
