"""
The output folder: everything is made in a hidden folder beside it and takes the output's name only when it is whole.
Whatever stops a conversion, nothing that looks finished is left behind, and nothing of the user's is lost.

Beside OUT, while a conversion runs and after one that was killed:

    .OUT.incomplete/lock         held by the process that converts
    .OUT.incomplete/state.json   what is being made (`Resume.plan`), and the hash of every shard that is complete
    .OUT.incomplete/model/       becomes OUT
    .OUT.incomplete/replaced/    the model that was at OUT before. Beside model/ it is the user's, as OUT has not been
                                 replaced yet, and goes back; without model/ it was replaced, and is deleted
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ...errors import CheckpointError, reason_of
from .files import read_json, write_json


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
        write_json(self.file, {"plan": self.plan, "shards": self.shards})


@contextmanager
def staged_output(out: Path, plan: dict[str, Any] | None = None) -> Iterator[tuple[Path, Resume]]:
    """
    Yields a folder to write to, which becomes `out` on leaving without an exception, and what an earlier run with the
    same `plan` had finished in it. Leaving with a failure removes it, and the parent folders that were made for it;
    Ctrl-C or a kill leaves it for the next run.

    Raises:
        `CheckpointError`: another process is writing to `out`, or has changed it meanwhile, or the disk is full,
            read-only or not permitted.
    """
    work = work_folder(out)
    with failures_of_writing(out), made_parents(work), held(out, work):
        put_back(out, work)
        try:
            before = contents(out)
            resume = open_resume(work, plan)
            yield work / "model", resume
            replace(out, work, before)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            tidy(work)
            raise
        tidy(work)


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


@contextmanager
def made_parents(work: Path) -> Iterator[None]:
    """Makes the folder `work`. Parents that were made for it and are empty in the end are removed."""
    made = [folder for folder in work.parents if not folder.exists()]
    try:
        work.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def held(out: Path, work: Path) -> Iterator[None]:
    """Only one process at a time is here."""
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(f"{out}: another conversion is writing to it; wait for it, or stop it.") from None
    try:
        yield
    finally:
        lock.release()


def contents(out: Path) -> dict[str, tuple[int, ...]]:
    """By which it is seen whether anything in `out` has changed: every path in it with inode, size and time."""
    paths = [out, *sorted(out.rglob("*"))] if out.exists() else []
    stats = {str(path): path.lstat() for path in paths}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def replace(out: Path, work: Path, before: dict[str, tuple[int, ...]]) -> None:
    """The new folder takes the place of the old one, which has to be as it was `before`."""
    if contents(out) != before:
        raise CheckpointError(
            f"{out}: was changed while the conversion ran, so it is not replaced; choose another output."
        )
    try:
        if out.exists():
            out.rename(work / "replaced")
        (work / "model").rename(out)
    except BaseException:
        put_back(out, work)
        raise


def put_back(out: Path, work: Path) -> None:
    """
    Finishes what a kill has stopped in `replace` or after it, under the lock: the model that was at `out` goes back if
    the new one has not taken its place, and is deleted if it has. Then something else may be at `out`, or nothing.
    """
    replaced = work / "replaced"
    if not replaced.exists():
        return
    if not (work / "model").exists():
        discard(replaced)
    elif not out.exists():
        replaced.rename(out)
    else:
        raise CheckpointError(
            f"{out}: a conversion was stopped while it replaced this folder. What it held then is in {replaced}; move "
            "that to where you want it, then run this again."
        )


def recover(out: Path) -> None:
    """What a kill has left, unless it is something to continue: then only the user's model is put back."""
    work = work_folder(out)
    with suppress(FileNotFoundError):
        os.lstat(work)  # a name that is too long, or a folder that may not be entered, is known from now on
    if work.is_symlink():
        raise CheckpointError(f"{work}: is a symbolic link, and this is where {out} would be made; remove it.")
    if work.exists() and ((work / "replaced").exists() or not (work / "model").exists()):
        with held(out, work):
            put_back(out, work)
            if not (work / "model").exists():
                tidy(work)


def tidy(work: Path) -> None:
    """Removes what is ours, under the lock, and the lock last. The user's model, if it is still there, stays."""
    if (work / "replaced").exists() and (work / "model").exists():
        return
    with suppress(OSError):
        for name in ("model", "replaced"):
            discard(work / name)
        for folder in work.glob("deleted-*"):
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("state.json", ".state.json.new", "lock"):
            (work / name).unlink(missing_ok=True)
        work.rmdir()


def discard(folder: Path) -> None:
    """What may not be deleted gets another name, by which nobody takes it for a model."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        folder.rename(Path(tempfile.mkdtemp(prefix="deleted-", dir=folder.parent)) / folder.name)


@contextmanager
def failures_of_writing(out: Path) -> Iterator[None]:
    """A full or read-only disk as one sentence. What is read on the way, and may not be, is another matter."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        work = work_folder(out)
        if isinstance(error, PermissionError) and is_elsewhere(error.filename, out, work):
            raise
        left = f"What is left is in {work}" if os.path.lexists(work) else "Nothing was left behind"
        raise CheckpointError(f"{out}: could not be written ({reason_of(error)}). {left}.") from error


def is_elsewhere(file: str | None, *folders: Path) -> bool:
    """Whether this is none of these folders, and neither lies in one nor holds one."""
    return file is not None and not any(
        Path(file).is_relative_to(folder) or folder.is_relative_to(file) for folder in folders
    )
