"""Shards written as a stream are, byte for byte, what the safetensors package writes from memory."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from nexus_transformers.conversion_scripts.checkpoint import shards
from nexus_transformers.conversion_scripts.checkpoint.shards import Planned, write_shard
from nexus_transformers.errors import CheckpointError


def planned(tensors, dtypes=None):
    return {
        name: Planned(tensor.to("meta", (dtypes or {}).get(name, tensor.dtype)), lambda tensor=tensor: tensor, name)
        for name, tensor in tensors.items()
    }


TENSORS = {
    "b.bias": torch.randn(7).bfloat16(),
    "a.weight": torch.randn(5, 3),
    "c.wide": torch.randn(2, 3, 4).half(),
    "d.double": torch.randn(3).double(),
    "ä.name": torch.randn(1),
    "e.transposed": torch.randn(4, 6).t(),
    "f.empty": torch.empty(0, 3),
}


@pytest.mark.parametrize("piece", [1, 4, 1 << 24])
def test_same_bytes_as_safetensors(piece, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PIECE", piece)
    counted = []
    description = write_shard(tmp_path / "ours.safetensors", planned(TENSORS), counted.append)
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(contiguous, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours = (tmp_path / "ours.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()
    assert description == {"bytes": len(ours), "sha256": hashlib.sha256(ours).hexdigest()}
    assert sum(counted) == sum(tensor.nbytes for tensor in TENSORS.values())


def test_dtypes_change_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PIECE", 4)
    write_shard(tmp_path / "x", planned(TENSORS, {"a.weight": torch.bfloat16}), lambda amount: None)
    loaded = load_file(tmp_path / "x")
    assert torch.equal(loaded["a.weight"], TENSORS["a.weight"].bfloat16())
    assert torch.equal(loaded["e.transposed"], TENSORS["e.transposed"])


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), torch.float32, "x holds NaN; the checkpoint is broken"),
        (float("-inf"), torch.float32, "x holds infinite values; the checkpoint is broken"),
        (1e30, torch.float16, "x holds values too large for float16; choose another --dtype"),
    ],
)
@pytest.mark.parametrize("place", [0, 5, 8])
def test_values_that_no_model_has(value, dtype, message, place, tmp_path):
    tensor = torch.zeros(9)
    tensor[place] = value
    with pytest.raises(CheckpointError, match=message):
        write_shard(tmp_path / "x", planned({"x": tensor}, {"x": dtype}), lambda amount: None)
