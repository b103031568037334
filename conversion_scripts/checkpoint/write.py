"""Writing the weights of a plan, while the source is hashed."""

from functools import partial
from pathlib import Path
from typing import Any

from ..progress import alongside, bytes_bar
from .output import Resume
from .report import hash_source, source_bytes, start_report
from .shards import Planned, total_bytes, write_weights
from .weights import Checkpoint


def write_planned(
    folder: Path,
    resume: Resume,
    opened: Checkpoint,
    plan: dict[str, Planned],
    options: dict[str, Any],
    command: list[str] | None,
) -> dict[str, Any]:
    """
    Writes what `plan` makes of `opened` and returns the report, as far as it is known by then. A second thread hashes
    the source: what both read is read from disk once.
    """
    with (
        bytes_bar("hashing and writing", source_bytes(opened) + total_bytes(plan)) as advance,
        alongside(partial(hash_source, opened), advance) as hashes,
    ):
        written = write_weights(folder, plan, advance, resume, options["max_shard_size"])
        return start_report(opened, plan, options, command, hashes(), written)
