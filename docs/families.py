"""Writes the table of families in convert.md, from the families themselves: `python docs/families.py`."""

import re
from pathlib import Path

from nexus_transformers.conversion_scripts.families import ALL
from nexus_transformers.conversion_scripts.families.wrapped import WRAPPERS

PAGE = Path(__file__).with_name("convert.md")
BETWEEN = re.compile(r"(<!-- table, written by docs/families.py -->\n).*?(<!-- end -->)", re.DOTALL)


def table() -> str:
    lines = ["| family | which models | logits |", "|---|---|---|"]
    for name, family in sorted(ALL.items()):
        logits = "equal up to rounding" if family.rounds else "equal bit for bit"
        lines.append(f"| `{name}` | {family.models} | {logits} |")
    for name, wrapper in sorted(WRAPPERS.items()):
        lines.append(f"| `{name}` | {wrapper.models}: the language model alone | equal bit for bit |")
    return "".join(f"{line}\n" for line in lines)


def page() -> str:
    """The page with its table made anew."""
    return BETWEEN.sub(lambda match: match[1] + table() + match[2], PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
