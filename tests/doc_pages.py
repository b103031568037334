"""
The pages of the documentation, taken apart: code blocks, links, headings. And a way to run a block as a reader would.

A block runs unless the line before it is `<!-- not run: WHY -->`. `python` blocks run as scripts, `bash` blocks line by
line, in a folder that looks like a clone after `make demo`.
"""

import glob
import io
import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import nexus_transformers

ROOT = Path(nexus_transformers.__file__).parent
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
# Every run starts in a process that has imported these, which takes seconds, but has run nothing.
PRELOADED = [
    "doc_pages",
    "peft",
    "transformers.generation.utils",
    "transformers.trainer",
    "nexus_transformers.conversion_scripts.cli",
]
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language ("" if it has none), its text, and why it is not run, if so."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """The commands of a `bash` block, without comments; a backslash at the end of a line continues it."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [command for line in lines if (command := re.sub(r"(^|\s+)# .*", "", line).strip())]


def blocks(page: Path) -> list[Block]:
    found, opened, before = [], None, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if opened is None and line.startswith("```"):
            reason = NOT_RUN.fullmatch(before)
            opened = (number, line[3:].strip(), reason[1] if reason else None)
            content = []
        elif opened is not None and line.startswith("```"):
            start, language, not_run = opened
            found.append(Block(page, start, language, "\n".join(content) + "\n", not_run))
            opened = None
        elif opened is not None:
            content.append(line)
        before = line
    assert opened is None, f"{page}:{opened[0]}: this block is not closed"
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def run(command: str | None, code: str | None, folder: Path) -> str:
    """Runs a command line, or Python code, in `folder`; returns what it printed, and fails if it fails."""
    log = folder / ".log"
    if command is not None and command.split()[0] not in ("nexus", "python"):
        process = subprocess.run(["bash", "-euc", command], cwd=folder, capture_output=True, text=True)
        status, output = process.returncode, process.stdout + process.stderr
    else:
        child = _PROCESSES.Process(target=_child, args=(shlex.split(command or ""), code, folder, log))
        child.start()
        child.join()
        status, output = child.exitcode, log.read_text(encoding="utf-8")
    assert status == 0, f"exit status {status}: {command or code}\n{output}"
    return output


def _child(words: list[str], code: str | None, folder: Path, log: Path) -> None:
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(number, "wb"), write_through=True) for number in (1, 2))
    words = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    sys.argv = words[1:] or [""]
    try:
        if code is not None:
            exec(compile(code, "<block>", "exec"), {"__name__": "__main__"})
        elif words[0] == "nexus":
            sys.argv = words
            from nexus_transformers.conversion_scripts.cli import main

            main()
        elif words[1] == "-m":
            sys.argv = words[2:]
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(words[1]).parent))
            runpy.run_path(words[1], run_name="__main__")
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def anchors(page: Path) -> set[str]:
    """What GitHub names the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        copies = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.add(f"{slug}-{copies}" if copies else slug)
    return found


def links(page: Path) -> list[str]:
    """The targets of the links and pictures of a page."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    return re.findall(r"\]\(([^)\s]+)\)", text)
