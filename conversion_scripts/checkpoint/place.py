"""Where a command writes: the path of the folder, and whether it may be written there, before any work is done."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from ...errors import CheckpointError, reason_of
from .files import REPORT_FILE, read_json
from .output import failures_of_writing, recover, work_folder

MODEL = "a Nexus model"  # what `convert` writes, for `check_output`
EFFECTIVE_IDS = os.access in os.supports_effective_ids


def output_path(out: str | Path) -> Path:
    """
    Where the folder `out` is, whatever becomes of the working directory; `~` is home. A link in its last place is not
    followed: `check_output` refuses it. Raises `CheckpointError` for what cannot be a path.
    """
    path = expanded(out)
    try:
        return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a working directory that is gone
        raise CheckpointError(f"{out}: is no path to a folder ({reason_of(error)}); give another one.") from error


def expanded(path: str | Path) -> Path:
    """`~` is home, whether or not a shell has seen it."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"{path}: has no home folder ({reason_of(error)}); give the whole path.") from error


def check_output(
    out: Path,
    kind: str,
    is_ours: Callable[[Path], bool],
    is_its_file: Callable[[str], bool] | None = None,
    inputs: Iterable[Path] = (),
    overwrite: bool = True,
) -> None:
    """
    Checks that a command may write to the folder `out`: it is free, or holds an earlier result and nothing else.

    Args:
        out: from `output_path`.
        kind: what the command writes, as in "a Nexus model", for messages.
        is_ours: whether a folder that is not empty holds one of those.
        is_its_file: whether such a folder may have the file of this path in it; None for any.
        inputs: files and folders that are read, so `out` may neither lie within one nor hold it.
        overwrite: whether an earlier result may be replaced.

    Raises:
        `CheckpointError`: `out` may not be written to.
    """
    with failures_of_writing(out):
        check_place(out, inputs)
        recover(out)
        if not out.exists() or not any(out.iterdir()):
            return
        check_replaceable(out, kind, is_ours, is_its_file, overwrite)


def check_place(out: Path, inputs: Iterable[Path]) -> None:
    """Whatever is there: nobody stands in it, and it is neither read from nor something else than a folder."""
    for path in (out, *inputs):
        if not is_utf8(str(path)):
            raise CheckpointError(f"{path}: its name is not UTF-8 text, as a model's must be; rename it.")
    if out.is_symlink():
        raise CheckpointError(f"{out}: is a symbolic link; give the folder itself.")
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: is a file; choose a folder to write to.")
    if stands_in(out):
        raise CheckpointError(
            f"{out}: is the folder you are in, or holds it, and a folder is written as a whole; choose another one."
        )
    if os.path.ismount(out):
        raise CheckpointError(f"{out}: is where a disk is mounted, which cannot be replaced; choose a folder inside.")
    check_writable(out)
    for path in inputs:
        if overlap(out, path):
            raise CheckpointError(f"{out}: lies within the source {path}, or holds it; choose an output beside it.")


def stands_in(folder: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # the working directory was deleted: nobody stands there
        return False


def overlap(out: Path, source: Path) -> bool:
    try:
        if not source.exists():  # on the Hub, perhaps
            return False
        source = source.resolve()
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({reason_of(error)}).") from error
    return out.is_relative_to(source) or source.is_relative_to(out)


def check_writable(folder: Path) -> None:
    """Before work whose result is written there."""
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK, effective_ids=EFFECTIVE_IDS):
        raise CheckpointError(f"{folder}: is read-only; choose another folder, or change its permissions.")


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_replaceable(
    out: Path,
    kind: str,
    is_ours: Callable[[Path], bool],
    is_its_file: Callable[[str], bool] | None,
    overwrite: bool,
) -> None:
    """What is there is an earlier result, and may be replaced."""
    paths = [path for path in sorted(out.rglob("*")) if path.is_symlink() or not path.is_dir()]
    pipes = [path for path in paths if not path.is_file()]
    if not pipes and not is_ours(out):
        raise CheckpointError(
            f"{out}: is not empty and is not {kind}. This command did not write it, so it is not replaced; choose "
            "another folder."
        )
    files = [path.relative_to(out).as_posix() for path in paths]
    foreign = pipes or [file for file in files if is_its_file and not is_its_file(file)]
    if foreign:
        raise CheckpointError(
            f"{out}: holds {foreign[0]}, which this command did not write, so it is not replaced; choose another "
            "folder."
        )
    if not overwrite:
        raise CheckpointError(
            f"{out}: already holds {kind}, not the one that this command would write; choose another folder, or pass "
            "--overwrite to replace it."
        )


def is_our_model(folder: Path) -> bool:
    """A Nexus model, or a standard one that was converted back from one."""
    try:
        is_nexus = read_json(folder / "config.json").get("model_type") == "nexus"
        return is_nexus or "nexus_transformers" in read_json(folder / REPORT_FILE)
    except CheckpointError:
        return False


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
