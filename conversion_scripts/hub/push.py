"""
`nexus push`: a finished model folder to the Hub, in one commit, and back again. What the Hub then serves is downloaded
and loaded in a fresh process, and must be what lies in the folder.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationDelete, HfApi, ModelInfo, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP client that huggingface_hub uses, which is not the same one in all its releases
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import logging, validate_repo_id

from ...errors import ConversionError, reason_of
from ..printing import console, size
from ..progress import quiet_when_piped, spinner
from ..verification.isolated import run_isolated
from ..verification.verify import fits_in_memory
from .upload import MODEL_FILES, WEIGHT_FILES, Upload, matches, prepare


def push(folder: str | Path, repo_id: str, private: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """
    Uploads the Nexus model in `folder` to the Hub's `repo_id` in one commit, then downloads that commit in a fresh
    process that cannot import our package and compares files, config, tokenizer and outputs with those of the folder.

    If the repository already holds exactly this, no commit is made; it is compared all the same. Model files of an
    earlier push that the folder no longer has are deleted in the same commit: a stale shard may win over a new one.

    Args:
        folder: a Nexus model, converted or saved by `save_pretrained` or Trainer, with a card.
        repo_id: as in user/name; made if it does not exist.
        private: make the new repository private.
        dry_run: check everything, send nothing.

    Returns: repo_id, url, exists (before), files, left_out, deleted, notes; unless `dry_run` also commit, unchanged and
        verification.

    Raises:
        `ConversionError`: the folder is not complete, the Hub refuses or cannot be reached, or what comes back differs.
    """
    logging.set_verbosity_error()
    check_repo_id(repo_id)
    upload = prepare(Path(folder), repo_id)
    check_temporary_space(upload.nbytes)
    api = HfApi()
    with failures_of_the_hub(repo_id):
        if get_token() is None:
            raise ConversionError("Not logged in to the Hub: run `hf auth login`, or set HF_TOKEN.")
        api.whoami()
        before = find_repository(api, repo_id)
    check_repository(before, repo_id, private)
    there = {sibling.rfilename for sibling in before.siblings or []} if before else set()
    stale = sorted(name for name in there - set(upload.files) if matches(name, MODEL_FILES + WEIGHT_FILES))
    result = {
        "repo_id": repo_id,
        "url": f"{api.endpoint}/{repo_id}",
        "exists": before is not None,
        "private": before.private if before else private,
        "files": upload.files,
        "left_out": upload.left_out,
        "deleted": stale,
        "notes": upload.notes,
    }
    if dry_run:
        return result | {"dry_run": True}
    operations = [upload.operation(name) for name in upload.files] + [CommitOperationDelete(name) for name in stale]
    advice = (
        "Nothing half-done is visible there. Run the same command again: what has already arrived is not sent again."
    )
    with failures_of_the_hub(repo_id, advice), quiet_when_piped():
        if before is None:
            api.create_repo(repo_id, private=private or None, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message="Upload Nexus model",
            commit_description=f"By nexus-transformers {version('nexus-transformers')}.",
        ).oid
    result |= {"commit": commit, "unchanged": before is not None and commit == before.sha}
    return result | {"verification": verify_pushed(upload, repo_id, commit)}


def check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        pass
    else:
        if repo_id.count("/") == 1:
            return
    raise ConversionError(
        f"{repo_id}: is not the name of a repository; give USER/NAME, of letters, digits, '-', '_' and '.'."
    )


def check_temporary_space(needed: int) -> None:
    """What is pushed is downloaded again."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < needed:
        raise ConversionError(
            f"{tempfile.gettempdir()}: has {size(free)} free, but {size(needed)} are needed to download again what is "
            "pushed and compare it; set TMPDIR to a folder on a larger disk."
        )


def find_repository(api: HfApi, repo_id: str) -> ModelInfo | None:
    try:
        return api.model_info(repo_id)
    except GatedRepoError:  # it is there; to the client this is a kind of not being found
        raise
    except RepositoryNotFoundError:
        return None


def check_repository(info: ModelInfo | None, repo_id: str, private: bool) -> None:
    if info is None:
        return
    model_type = (info.config or {}).get("model_type")
    if model_type not in (None, "nexus"):
        raise ConversionError(
            f"{repo_id}: already holds a model of another type ({model_type}); push to a repository of its own."
        )
    if private and not info.private:
        raise ConversionError(
            f"{repo_id}: exists and is public, and --private does not change that: it only applies to a new "
            "repository. Make it private in its settings on the Hub, or leave --private out. Nothing was sent."
        )


@contextmanager
def failures_of_the_hub(repo_id: str, advice: str = "") -> Iterator[None]:
    """What the Hub and the way to it can answer, in a sentence or two. `advice` follows where trying again may help."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = error
        while isinstance(cause, RuntimeError) and cause.__cause__ is not None:  # "Error while uploading …"
            cause = cause.__cause__
        raise ConversionError(" ".join(describe_failure(repo_id, cause, advice).split())) from error


def describe_failure(repo_id: str, error: BaseException, advice: str) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled):
        return "The Hub cannot be reached: HF_HUB_OFFLINE is set."
    if isinstance(error, GatedRepoError):
        return f"{repo_id}: is gated on the Hub, and this account has no access; ask for it on its page."
    if status == 401:
        return "The Hub does not accept the token: log in again with `hf auth login`, or mend HF_TOKEN if it is set."
    if status == 403:
        return f"{repo_id}: this token may not write there; use one with write permission for this repository."
    if status is not None:
        return f"{repo_id}: the Hub answered {status} ({error.server_message or 'without a reason'}). {advice}"
    if isinstance(error, ValueError):  # the Hub's own check of the card, before anything is sent
        return f"{repo_id}: the Hub does not accept it ({reason_of(error)})."
    return f"{repo_id}: the connection to the Hub failed ({reason_of(error)}). {advice}"


def verify_pushed(upload: Upload, repo_id: str, commit: str) -> dict[str, Any]:
    """Downloads the commit and compares it with the folder in a fresh process, see pushed_check.py."""
    request = {
        "repo_id": repo_id,
        "revision": commit,
        "folder": str(upload.folder.resolve()),
        "files": upload.files,
        "auto_class": upload.auto_class,
        "vocab_size": upload.config.vocab_size,
        "load_weights": fits_in_memory(upload.checkpoint),
    }
    failure = (
        f"{repo_id}: was uploaded as commit {commit}; to check it again, run the same command, which uploads nothing "
        "twice. It could not be downloaded and loaded again"
    )
    with spinner("downloading the commit and loading it in a fresh process"):
        figures = run_isolated("pushed_check.py", request, failure)
    if figures["differences"]:
        raise ConversionError(
            f"{repo_id}: was uploaded as commit {commit}, but what comes back differs: "
            f"{'; '.join(figures['differences'])}. Do not use it; run the same command again."
        )
    return figures


def print_push(result: dict[str, Any]) -> None:
    files, dry_run = result["files"], result.get("dry_run", False)
    total = size(sum(description["bytes"] for description in files.values()))
    if dry_run:
        state = "exists" if result["exists"] else "does not exist and would be made"
        kind = "private" if result["private"] else "public"
        console.print(
            f"Nothing was sent. {result['url']} {state} ({kind}). These {len(files)} files, {total}, would be:"
        )
        for name, description in files.items():
            console.print(f"  {description['bytes']:>14,}  {name}")
    elif result["unchanged"]:
        console.print(
            f"{result['url']} already holds exactly this, as commit {result['commit']}: nothing was uploaded."
        )
    else:
        console.print(f"Uploaded {len(files)} files, {total}, to {result['url']} as commit {result['commit']}.")
    for label, names in (("Left out", result["left_out"]), ("Deleted there", result["deleted"])):
        if names:
            console.print(f"{label}: {', '.join(names)}.")
    for note in result["notes"]:
        console.print(f"Note: {note}.")
    if not dry_run:
        figures = result["verification"]
        outputs = (
            f"outputs equal at {figures['positions']} positions"
            if "positions" in figures
            else "outputs not compared, as the model does not fit in memory"
        )
        console.print(
            f"Downloaded again and loaded in a fresh process: {figures['files']} files with equal sha256, config "
            f"{'and tokenizer ' if figures['tokenizer'] else ''}equal, {outputs}."
        )
