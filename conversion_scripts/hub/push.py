"""
`nexus push`: a finished model folder to the Hub, in one commit, and back again. What the Hub then serves is downloaded
and loaded in a fresh process, and must be what lies in the folder.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from importlib.metadata import version
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelInfo, errors
from huggingface_hub.utils import logging, validate_repo_id

from ...errors import HubError, NexusError, reason_of
from ..checkpoint.files import MODEL_FILES, WEIGHT_FILES, is_one_of
from ..printing import size
from ..progress import console, quiet_when_piped
from ..verification.isolated import run_isolated
from ..verification.verify import fits_in_memory
from .upload import Upload, prepare

SLOWEST = 100_000  # bytes per second, of a download: below that it is given up
OURS = [*MODEL_FILES, *WEIGHT_FILES]  # deleted on the Hub if the folder no longer has them


def push(
    folder: str | Path, repo_id: str, private: bool = False, dry_run: bool = False, trust_remote_code: bool = False
) -> dict[str, Any]:
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
        trust_remote_code: send and run code in `folder` that is not ours, too.

    Returns: repo_id, url, exists (before), private, files, left_out, deleted, notes; unless `dry_run` also commit,
        unchanged and verification.

    Raises:
        `NexusError`: the folder is not complete, the Hub refuses or cannot be reached, or what comes back differs.
    """
    logging.set_verbosity_error()
    check_repo_id(repo_id)
    api = HfApi()
    with tempfile.TemporaryDirectory(prefix="nexus-push-") as stage:
        upload = prepare(Path(folder), repo_id, Path(stage), trust_remote_code)
        check_temporary_space(upload)
        before = find_repository(api, repo_id, private)
        there = {sibling.rfilename for sibling in before.siblings or []} if before else set()
        stale = sorted(name for name in there - upload.files.keys() if is_one_of(name, OURS))
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
        with failures_of_the_hub(repo_id), quiet_when_piped():
            if before is None:
                # Not exist_ok: one that somebody else makes now may be public, or hold another model.
                api.create_repo(repo_id, private=private or None)
            # One commit up to 250 files. The folder holds only what is sent, so every pattern is allowed.
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=upload.folder,
                delete_patterns=[escape(name) for name in stale],
                commit_message="Upload Nexus model",
                commit_description=f"By nexus-transformers {version('nexus-transformers')}.",
            ).oid
        figures = verify_pushed(upload, repo_id, commit)
        upload.notes += changed_since(api, repo_id, commit)
    unchanged = before is not None and commit == before.sha
    return result | {"commit": commit, "unchanged": unchanged, "verification": figures}


def check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        if "/" not in repo_id:
            raise errors.HFValidationError
    except errors.HFValidationError:
        raise HubError(
            f"{repo_id}: is not the name of a repository; give USER/NAME, of letters, digits, '-', '_' and '.'."
        ) from None


def check_temporary_space(upload: Upload) -> None:
    """What is pushed is downloaded again."""
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    if free < upload.nbytes:
        raise HubError(
            f"{place}: has {size(free)} free, but {size(upload.nbytes)} are needed to download again what is pushed "
            "and compare it; set TMPDIR to a folder on a larger disk."
        )


def find_repository(api: HfApi, repo_id: str, private: bool) -> ModelInfo | None:
    """The repository, if it exists. Raises `HubError` if the model must not go there."""
    with failures_of_the_hub(repo_id):
        api.whoami()
        try:
            info = api.model_info(repo_id)
        except errors.GatedRepoError:  # a RepositoryNotFoundError too, but the repository is there
            raise
        except errors.RepositoryNotFoundError:
            return None
        model_type = (info.config or {}).get("model_type")
    if model_type not in (None, "nexus"):
        raise HubError(f"{repo_id}: already holds a model of another type ({model_type}); push to another repository.")
    if private and not info.private:
        raise HubError(
            f"{repo_id}: exists and is public, and --private does not change that: it only applies to a new "
            "repository. Make it private in its settings on the Hub, or leave --private out. Nothing was sent."
        )
    return info


@contextmanager
def failures_of_the_hub(repo_id: str) -> Iterator[None]:
    """Raises what the Hub and the connection to it answer as `HubError`, in a sentence or two."""
    try:
        yield
    except NexusError:
        raise
    except Exception as error:  # of an answer that lacks what it should have, the client makes an error of any kind
        cause = error
        while isinstance(cause, RuntimeError) and cause.__cause__ is not None:  # "Error while uploading …"
            cause = cause.__cause__
        raise HubError(describe_failure(repo_id, cause)) from error


def describe_failure(repo_id: str, error: BaseException) -> str:
    again = "Run the same command again: what has already arrived is not sent twice."
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "The Hub cannot be reached: HF_HUB_OFFLINE is set."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "Not logged in to the Hub: run `hf auth login`, or set HF_TOKEN."
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id}: is gated on the Hub, and this account has no access; ask for it on its page."
    if status == 401:
        return "The Hub does not accept the token: log in again with `hf auth login`, or correct HF_TOKEN if it is set."
    if status == 403:
        return f"{repo_id}: this token may not write there; use one with write permission for this repository."
    if status is not None:
        said = f"the Hub answered {status} ({reason_of(error.server_message or 'without a reason')})"
        why = ", as somebody else is changing it" if status in (409, 412) else ""
        return f"{repo_id}: {said}{why}. {again}"
    if isinstance(error, JSONDecodeError | UnicodeDecodeError):
        return (
            f"{repo_id}: what came back is not what a Hub says ({reason_of(error)}): a page of a proxy or a login, or "
            f"an answer that was cut off. Check the network, and HF_ENDPOINT if it is set. {again}"
        )
    if isinstance(error, ValueError) and str(error).startswith("Invalid metadata"):  # before anything is sent
        return f"{repo_id}: the Hub does not accept the card ({reason_of(error)}); correct README.md."
    # The former is that of the HTTP client, which is not the same one in all releases of huggingface_hub.
    if isinstance(error, errors.HTTPError | OSError | RuntimeError):
        return f"{repo_id}: the connection to the Hub failed ({reason_of(error)}). {again}"
    return (
        f"{repo_id}: the Hub's answer is not of the form that was expected ({type(error).__name__}: "
        f"{reason_of(error)}). Check HF_ENDPOINT if it is set, or update huggingface_hub. {again}"
    )


def changed_since(api: HfApi, repo_id: str, commit: str) -> list[str]:
    """What is checked is our commit. Whoever asks for the repository gets its newest one, which may be another."""
    with failures_of_the_hub(repo_id):
        newest = api.model_info(repo_id).sha
    if newest in (commit, None):
        return []
    return [
        f"somebody has changed {repo_id} meanwhile: whoever loads it gets commit {newest}, which was not checked; "
        f"commit {commit} was"
    ]


def verify_pushed(upload: Upload, repo_id: str, commit: str) -> dict[str, Any]:
    """Downloads the commit and compares it with the folder in a fresh process, see pushed_check.py."""
    request = {
        "repo_id": repo_id,
        "revision": commit,
        "folder": str(upload.folder.resolve()),
        "files": upload.files,
        "auto_class": upload.auto_class,
        "load_weights": fits_in_memory(upload.nexus),
    }
    failure = (
        f"{repo_id}: was uploaded as commit {commit}; to check it again, run the same command, which uploads nothing "
        "twice. It could not be downloaded and loaded again"
    )
    with console.status("downloading the commit and loading it in a fresh process"):
        figures = run_isolated("pushed_check.py", request, failure, seconds=3600 + upload.nbytes / SLOWEST)
    if figures["differences"]:
        raise HubError(
            f"{repo_id}: was uploaded as commit {commit}, but what comes back differs: "
            f"{'; '.join(figures['differences'])}. Do not use it; run the same command again."
        )
    return figures
