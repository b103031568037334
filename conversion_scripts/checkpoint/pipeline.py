"""
What both directions of conversion share: from a plan to a finished folder, or to the words that there is nothing to do.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..progress import alongside, bytes_bar
from .output import MODEL, check_free_space, check_output, is_occupied, is_our_model, staged_output
from .report import (
    add_files,
    describe_plan,
    describe_source,
    hash_source,
    identical_result,
    source_bytes,
    state_of,
    write_report,
)
from .shards import Planned, total_bytes, write_weights
from .source import Checkpoint


def produce(
    out: Path,
    opened: Checkpoint,
    plan: dict[str, Planned],
    options: dict[str, Any],
    fill: Callable[[Path, dict[str, Any]], None],
    check: Callable[[Path], dict[str, Any]] | None,
    describe: Callable[[Path, dict[str, Any]], None],
    overwrite: bool,
    command: list[str] | None,
    dry_run: bool,
) -> dict[str, Any]:
    """
    What both directions share. `fill` adds the files that are not weights, `check` gives the figures of the
    verification, `describe` writes the card.
    """
    if dry_run:
        return describe_plan(out, opened, plan, options)
    if is_occupied(out) and (report := identical_result(out, opened, options)):
        if check and "verification" not in report:
            report["verification"] = check(out)
            write_report(out, report)
            describe(out, report)
        return report | {"unchanged": True}
    check_output(out, MODEL, is_our_model, overwrite=overwrite)
    total = total_bytes(plan)
    check_free_space(out, total)
    with staged_output(out, state_of(opened, plan, options)) as (folder, resume):
        with bytes_bar("hashing and writing", source_bytes(opened) + total) as advance:
            with alongside(partial(hash_source, opened), advance) as hashes:  # what both read is read from disk once
                written = write_weights(folder, plan, advance, resume, options["max_shard_size"])
                report = describe_source(opened, options, command, hashes())
        resumed = written.pop("resumed")
        report["model"] = {"parameters": sum(planned.tensor.numel() for planned in plan.values()), **written}
        fill(folder, report)
        add_files(folder, report, resume)
        if check:
            report["verification"] = check(folder)
        write_report(folder, report)
        describe(folder, report)
    return report | {"resumed": resumed}
