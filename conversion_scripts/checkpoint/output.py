"""
The output folder: everything is made in a hidden folder beside it and takes the output's name only when it is whole.
Whatever stops a conversion, nothing that looks finished is left behind, and nothing of the user's is lost.

Beside OUT, while a conversion runs and after one that was killed:

    .OUT.incomplete/lock         held by the process that converts
    .OUT.incomplete/state.json   what is being made (`Resume.plan`), and the hash of every shard that is complete
    .OUT.incomplete/model/       becomes OUT
    .OUT.incomplete/replaced/    the model that was at OUT before, for the instant between two renames
"""

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ...errors import CheckpointError, reason_of
from .files import REPORT_FILE, read_json, write_json


def check_output(
    out: Path,
    kind: str,
    is_ours: Callable[[Path], bool],
    names: Collection[str] | None = None,
    inputs: Iterable[Path] = (),
    overwrite: bool = True,
) -> None:
    """
    Checks that a command may write to the folder `out`: it is free, or holds an earlier result and nothing else.

    Args:
        kind: what the command writes, as in "a Nexus model", for messages.
        is_ours: whether a folder that is not empty holds one of those.
        names: the files that such a folder may have; None for any.
        inputs: files and folders that are read, so `out` may neither lie within one nor hold it.
        overwrite: whether an earlier result may be replaced.

    Raises:
        `CheckpointError`: `out` may not be written to.
    """
    check_folder(out)
    for path in inputs:
        if path.exists() and any(
            one.resolve().is_relative_to(other.resolve()) for one, other in ((out, path), (path, out))
        ):
            raise CheckpointError(f"{out}: lies within the source {path}, or holds it; choose an output beside it.")
    if not is_occupied(out):
        return
    foreign = [path.name for path in out.iterdir() if names and (path.name not in names or not path.is_file())]
    if foreign:
        raise CheckpointError(
            f"{out}: holds {min(foreign)}, which this command did not write, so it is not replaced; choose another "
            "folder."
        )
    if not is_ours(out):
        raise CheckpointError(
            f"{out}: is not empty and is not {kind}. This command did not write it, so it is not replaced; choose "
            "another folder."
        )
    if not overwrite:
        raise CheckpointError(
            f"{out}: already holds {kind}, not the one that this command would write; choose another folder, or pass "
            "--overwrite to replace it."
        )


def check_folder(out: Path) -> None:
    """Raises `CheckpointError` if `out` is a link or a file. After a kill between two renames, undoes the first."""
    put_back(out, work_folder(out))
    if out.is_symlink():
        raise CheckpointError(f"{out}: is a symbolic link; give the folder itself.")
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: is a file; choose a folder to write to.")


def is_occupied(out: Path) -> bool:
    return out.exists() and any(out.iterdir())


def is_our_model(folder: Path) -> bool:
    """A Nexus model, or a standard one that was converted back from one."""
    try:
        is_nexus = read_json(folder / "config.json").get("model_type") == "nexus"
        return is_nexus or "nexus_transformers" in read_json(folder / REPORT_FILE)
    except CheckpointError:
        return False


MODEL = "a Nexus model"  # what `convert` writes, for `check_output`


@dataclass
class Resume:
    """
    What an interrupted conversion has finished. `shards`: file name -> {"bytes", "sha256"}. `used`: those of them that
    this run found whole and did not write again.
    """

    file: Path
    plan: dict[str, Any]
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)

    def add(self, name: str, description: dict[str, Any]) -> None:
        self.shards[name] = description
        temporary = self.file.with_suffix(".new")
        write_json(temporary, {"plan": self.plan, "shards": self.shards})
        temporary.replace(self.file)


@contextmanager
def staged_output(out: Path, plan: dict[str, Any] | None = None) -> Iterator[tuple[Path, Resume]]:
    """
    Yields a folder to write to, which becomes `out` on leaving without an exception, and what an earlier run with the
    same `plan` had finished in it. Leaving with a failure removes it; Ctrl-C or a kill leaves it for the next run.

    Raises:
        `CheckpointError`: another process is writing to `out`, or the disk is full, read-only or not permitted.
    """
    work = work_folder(out)
    with failures_of_writing(out):
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(f"{out}: another conversion is writing to it; wait for it, or stop it.") from None
        interrupted = False
        try:
            put_back(out, work)
            resume = open_resume(work, plan)
            yield work / "model", resume
            replace(out, work)
        except (KeyboardInterrupt, SystemExit):
            interrupted = True
            raise
        finally:
            if not interrupted:
                shutil.rmtree(work, ignore_errors=True)
            lock.release()


def work_folder(out: Path) -> Path:
    return out.parent / f".{out.name}.incomplete"


def open_resume(work: Path, plan: dict[str, Any] | None) -> Resume:
    """Keeps the finished shards of an earlier run with the same plan, and nothing else."""
    model, resume = work / "model", Resume(work / "state.json", plan or {})
    try:
        state = read_json(resume.file)
        if plan and state["plan"] == plan:
            resume.shards = dict(state["shards"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        pass  # there is none, or it was cut off while it was written for the first time
    if model.is_symlink():
        model.unlink()
    elif model.exists():
        for path in model.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in resume.shards:
                path.unlink()
    model.mkdir(exist_ok=True)
    return resume


def replace(out: Path, work: Path) -> None:
    """The new folder takes the old one's place; the old one is deleted after that, or put back if the move fails."""
    if out.exists():
        out.rename(work / "replaced")
    try:
        (work / "model").rename(out)
    except OSError:
        put_back(out, work)
        raise


def put_back(out: Path, work: Path) -> None:
    """If a process was killed between the two renames of `replace`, undoes the first."""
    if (work / "replaced").exists() and not out.exists():
        (work / "replaced").rename(out)


@contextmanager
def failures_of_writing(out: Path) -> Iterator[None]:
    """A full or read-only disk as one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{out}: could not be written ({reason_of(error)}). Nothing was left behind.") from error


def check_free_space(out: Path, needed: int) -> None:
    """`needed` bytes in all, of which an interrupted run may have written some. Raises `CheckpointError`."""
    needed -= sum(file.stat().st_size for file in (work_folder(out) / "model").glob("*") if file.is_file())
    free = free_space(out)
    if free < needed:
        raise CheckpointError(
            f"{out}: its disk has {free / 1e9:.2f} GB free, but the model needs {needed / 1e9:.2f} GB; free some space "
            "or choose another output."
        )


def free_space(out: Path) -> int:
    return shutil.disk_usage(next(parent for parent in out.resolve().parents if parent.exists())).free
