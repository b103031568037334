"""Writes the tree in architecture.md, one line per file, from the docstrings: `python docs/tree.py`."""

import ast
import re
from pathlib import Path
from textwrap import shorten

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BETWEEN = re.compile(r"(<!-- tree, written by docs/tree.py -->\n```text\n).*?(```\n<!-- end -->)", re.DOTALL)
FOLDERS = "tokenization conversion_scripts inspection common examples benchmarks experiments docs tests".split()
HOLDS = {  # those that are no packages, which say so themselves
    "examples": "Short scripts to copy",
    "docs": "One page per thing a user does, and results/, one page per experiment",
    "tests": "One test file per source file, in the same folders, and integration/ for the tools around",
}
LONGEST = 85  # characters of a summary; longer ones are cut at a comma or colon, if they have one


def summary(file: Path) -> str:
    """The first sentence of a file's docstring, without the command at its end."""
    text = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    sentence = re.match(r"(.*?[.?!])(?: |$)|(.*)", text)[0]
    sentence = re.sub(r"[:,] (`[^`]*`( or )?)+$", "", sentence.strip().rstrip(".:"))
    if len(sentence) > LONGEST and (clause := re.match(rf".{{20,{LONGEST}}}(?=[,:;] )", sentence)):
        sentence = clause[0]
    return shorten(sentence, LONGEST, placeholder=" …")


def lines(folder: Path, depth: int) -> list[tuple[str, str]]:
    """(indented name, summary) of the Python files of a folder, and of the folders in it that have some."""
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        indented = "  " * depth + path.name
        if path.suffix == ".py" and (depth == 0 or path.name != "__init__.py"):
            found.append((indented, summary(path)))
        elif path.is_dir() and folder != ROOT and folder.name != "tests" and (below := lines(path, depth + 1)):
            found += entry(path, depth) + below
    return found


def entry(folder: Path, depth: int) -> list[tuple[str, str]]:
    package = folder / "__init__.py"
    return [(f"{'  ' * depth}{folder.name}/", (package.exists() and summary(package)) or HOLDS.get(folder.name, ""))]


def tree() -> str:
    found = lines(ROOT, 0)
    for name in FOLDERS:
        found += entry(ROOT / name, 0) + lines(ROOT / name, 1)
    width = max(len(name) for name, _ in found) + 2
    return "".join(f"{name:{width}}{text}".rstrip() + "\n" for name, text in found)


def page() -> str:
    """The page with its tree made anew."""
    return BETWEEN.sub(lambda match: match[1] + tree() + match[2], PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
