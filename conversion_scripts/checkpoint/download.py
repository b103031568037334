"""A checkpoint on the Hub: what is read of it is downloaded to the cache, or the headers of its weights alone."""

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from ...errors import CheckpointError, NexusError, reason_of
from .files import INDEX_FILE, LICENCE_FILES, SINGLE_FILE
from .weights import no_weights, read_weight_map, two_sets

WEIGHTS = ["*.safetensors"]
OTHERS = ["*.json", "*.jinja", "*.model", "*.txt", "README.md", *LICENCE_FILES]
# The same weights in another form, and what lies in folders, where Transformers does not look
UNREAD = ["consolidated*.safetensors", "*/*.safetensors", "*/*.json", "*/*.model", "*/*.txt"]


def download(repo_id: str, revision: str | None, headers_only: bool = False) -> tuple[Path, str]:
    """
    The folder in the Hub's cache, and the commit that it is of. With `headers_only` a folder for the time of this
    process, in which weights have their names, dtypes and shapes, and no values.
    """
    patterns = OTHERS if headers_only else WEIGHTS + OTHERS
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=UNREAD))
        weights, commit = weight_files(folder, repo_id), folder.name
        if not all((folder / name).exists() for name in weights):  # else nothing need be asked of the Hub
            check_weights(repo_id, commit, weights)
            folder = with_headers(repo_id, folder, weights) if headers_only else folder
        return folder, commit
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repo_id}: is gated on the Hub; accept its terms on its page and log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo_id}: has no revision {revision!r} on the Hub.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"{repo_id}: no such folder here, and no such model on the Hub that this account may see. Check the "
            "spelling, or log in with `hf auth login` if it is private."
        ) from error
    except NexusError:
        raise
    except Exception as error:  # of an answer that lacks what it should have, the client makes an error of any kind
        raise CheckpointError(f"{repo_id}: could not be downloaded from the Hub ({reason_of(error)}).") from error


def weight_files(folder: Path, repo_id: str) -> list[str]:
    """Those that the index names; without one, the single file."""
    if not (folder / INDEX_FILE).exists():
        return [SINGLE_FILE]
    try:
        return sorted(set(read_weight_map(folder / INDEX_FILE).values()))
    except CheckpointError as error:  # the user knows no folder
        raise CheckpointError(str(error).replace(str(folder), repo_id)) from error


def check_weights(repo_id: str, commit: str, names: list[str]) -> None:
    """
    Raises `CheckpointError`, with what there is instead, if the repository has no weights that can be read. `names`:
    from `weight_files`.
    """
    there = HfApi().list_repo_files(repo_id, revision=commit)
    if SINGLE_FILE in there and INDEX_FILE in there and names != [SINGLE_FILE]:
        raise two_sets(repo_id)
    if SINGLE_FILE in there or INDEX_FILE in there:
        for name in names:
            if name not in there:
                raise CheckpointError(f"{repo_id}: lacks the shard {name}, which {INDEX_FILE} names.")
        return
    if gguf_files := [name for name in there if name.endswith(".gguf")]:
        raise CheckpointError(
            f"{repo_id}: has GGUF files only. Download one, for example with `hf download {repo_id} {gguf_files[0]} "
            "--local-dir .`, and give its path as SOURCE."
        )
    raise no_weights(repo_id, there)


def with_headers(repo_id: str, folder: Path, names: list[str]) -> Path:
    """A copy of the folder in which these weight files are headers, and holes where the values would be."""
    copy = Path(tempfile.mkdtemp(prefix="nexus-headers-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*WEIGHTS), dirs_exist_ok=True)
    for name in names:
        tensors = HfApi().parse_safetensors_file_metadata(repo_id, name, revision=folder.name).tensors
        header = {
            tensor: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
            for tensor, info in tensors.items()
        }
        encoded = json.dumps(header).encode()
        (copy / name).write_bytes(len(encoded).to_bytes(8, "little") + encoded)
        os.truncate(copy / name, 8 + len(encoded) + max(info.data_offsets[1] for info in tensors.values()))
    return copy
