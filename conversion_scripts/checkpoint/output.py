"""
The output folder: everything is made in a hidden folder beside it and takes the output's name only when it is whole.
Whatever stops a conversion, nothing that looks finished is left behind, and nothing of the user's is lost.

Beside OUT, while a conversion runs and after one that was killed:

    .OUT.incomplete/lock         held by the process that converts
    .OUT.incomplete/state.json   what is being made (`Resume.plan`), and the hash of every shard that is complete
    .OUT.incomplete/model/       becomes OUT
    .OUT.incomplete/replaced/    the model that was at OUT before, for the instant between two renames
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ...errors import ConversionError, reason_of
from .source import read_json


def check_output(out: Path, source_folder: Path | None) -> None:
    """Raises `ConversionError` if `out` can be no output whatever the options: a link, not ours, in the source."""
    check_folder(out)
    if source_folder is not None:
        inner, outer = sorted((out.resolve(), source_folder.resolve()), key=lambda path: -len(path.parts))
        if inner.is_relative_to(outer):
            raise ConversionError(f"{out}: lies within the source folder, or holds it; choose an output beside it.")
    if is_occupied(out) and not is_our_model(out):
        raise ConversionError(f"{out}: is not empty and is not a Nexus model, so it is not replaced; choose another.")


def check_folder(out: Path) -> None:
    """Raises `ConversionError` if `out` is a link or a file. After a kill between two renames, undoes the first."""
    put_back(out, work_folder(out))
    if out.is_symlink():
        raise ConversionError(f"{out}: is a symbolic link; give the folder itself.")
    if out.exists() and not out.is_dir():
        raise ConversionError(f"{out}: is a file; choose a folder to write to.")


def is_occupied(out: Path) -> bool:
    return out.exists() and any(out.iterdir())


def check_overwrite(out: Path, overwrite: bool) -> None:
    if is_occupied(out) and not overwrite:
        raise ConversionError(
            f"{out}: already holds a model, which is not what this command would write; choose another folder, or pass "
            "--overwrite."
        )


def is_our_model(folder: Path) -> bool:
    """A Nexus model, or a standard one that was converted back from one."""
    try:
        is_nexus = read_json(folder / "config.json").get("model_type") == "nexus"
        return is_nexus or "nexus_transformers" in read_json(folder / REPORT_FILE)
    except ConversionError:
        return False


REPORT_FILE = "conversion_report.json"


@dataclass
class Resume:
    """What an interrupted conversion has finished. `shards`: file name -> {"bytes", "sha256"}."""

    file: Path
    plan: dict[str, Any]
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)

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
        `ConversionError`: another process is writing to `out`, or the disk is full, read-only or not permitted.
    """
    work = work_folder(out)
    with failures_of_writing(out):
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConversionError(f"{out}: another conversion is writing to it; wait for it, or stop it.") from None
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
    except (ConversionError, KeyError, TypeError, ValueError):
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
    except SafetensorError as error:
        raise ConversionError(f"{out}: could not be written ({reason_of(error)}). Nothing was left behind.") from error
    except OSError as error:
        raise ConversionError(f"{out}: could not be written ({reason_of(error)}). Nothing was left behind.") from error


def check_free_space(out: Path, needed: int) -> None:
    """`needed` bytes in all, of which an interrupted run may have written some. Raises `ConversionError`."""
    needed -= sum(file.stat().st_size for file in (work_folder(out) / "model").glob("*") if file.is_file())
    free = free_space(out)
    if free < needed:
        raise ConversionError(
            f"{out}: its disk has {free / 1e9:.2f} GB free, but the model needs {needed / 1e9:.2f} GB; free some space "
            "or choose another output."
        )


def free_space(out: Path) -> int:
    return shutil.disk_usage(next(parent for parent in out.resolve().parents if parent.exists())).free


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
