"""
RESULTS.md, docs/results/*.md and the table that model cards quote: `python -m experiments.page`.

The pages are written by hand. This command writes the tables in them, each between `<!-- generated: NAME -->` and
`<!-- end -->`, and then lists every figure in the prose that is not what the results say. A comment after the prose
names the origin of each figure in it, in order: a path in the summaries, or "setting" for what is no result.

    Order 2 takes 1.34 times the compute at a rate of 3e-3.
    <!-- figures: hops/models/1 layer, order 2/relative_compute; setting -->

In docs/results/hops.md a path starts inside the summary of hops.
"""

import re
import sys
from pathlib import Path

from common.report import fill

from .quoted import figure, percent, summaries
from .runs import ROOT
from .tables import BLOCKS, evidence

REPOSITORY = ROOT.parent
PAGES = [REPOSITORY / "RESULTS.md", *sorted((REPOSITORY / "docs" / "results").glob("*.md"))]
EVIDENCE = REPOSITORY / "conversion_scripts" / "hub" / "evidence.md"
ORIGINS = re.compile(r"<!-- figures: (.+?) -->", re.DOTALL)
NO_PROSE = re.compile(r"<!-- generated: [^<]*<!-- end -->|```.+?```|`[^`]*`|\]\([^)]*\)", re.DOTALL)
# Percentages, decimals, numbers like 1,000 and 3e-3, and whatever has a range after it.
FIGURE = re.compile(
    r"(?<![\w.,+-])[+-]?(?:\d+\s*%|\d+\.\d+(?!\w)|\d{1,3}(?:,\d{3})+|\d+e-\d+|\d+(?=\s+\(\S+\s+to\s+\S+\)))"
    r"(?:\s+\([^\s()]+\s+to\s+[^\s()]+\))?"
)


def summary(page: Path) -> dict:
    """What the origins in a page are looked up in."""
    return summaries().get(page.stem, summaries())


def wrong_figures(text: str, summary: dict) -> tuple[list[str], int, list[str]]:
    """What is wrong with the figures that have an origin, how many those are, and the figures that have none."""
    wrong, without, count = [], [], 0
    for paragraph in re.split(r"\n\s*\n", NO_PROSE.sub("", text)):
        *pieces, rest = ORIGINS.split(paragraph)
        without += FIGURE.findall(rest)
        for prose, named in zip(pieces[::2], pieces[1::2], strict=True):
            written = [" ".join(each.split()) for each in FIGURE.findall(prose)]
            origins = [" ".join(origin.split()) for origin in named.split(";")]
            count += len(written)
            if len(written) != len(origins):
                wrong.append(f"{len(written)} figures, {', '.join(written)}, but {len(origins)} origins, {named!r}")
                continue
            for each, origin in zip(written, origins, strict=True):
                if origin != "setting" and each != (right := shown(look_up(summary, origin), each)):
                    wrong.append(f"{each} should be {right}, {origin}")
    return wrong, count, without


def look_up(summary: dict, origin: str) -> dict | float:
    for key in origin.split("/"):
        if key not in summary:
            sys.exit(f"page: no {key!r} in the results, which {origin!r} names; there are {', '.join(summary)}.")
        summary = summary[key]
    return summary


def shown(value: dict | float, like: str) -> str:
    """A result, printed in the manner of `like`: as a percentage, with as many decimals, with its range or without."""
    if "%" in like:
        text = percent(value)
    elif "e-" in like:
        text = like if float(like) == value else f"{value:g}"
    else:
        decimals = like.partition(" ")[0].partition(".")[2]
        text = figure(value, len(decimals), "+" if like.startswith("+") else "-")
    return text if " to " in like else text.partition(" (")[0]


def main() -> None:
    EVIDENCE.write_text(evidence() + "\n", encoding="utf-8")
    complaints = []
    for page in PAGES:
        text = fill(page.read_text(encoding="utf-8"), BLOCKS)
        page.write_text(text, encoding="utf-8")
        wrong, _, without = wrong_figures(text, summary(page))
        complaints += [f"{page.name}: {each}" for each in wrong + [f"{each} has no origin" for each in without]]
    print(f"written: {EVIDENCE} and the tables of {len(PAGES)} pages")
    if complaints:
        sys.exit("Correct by hand:\n" + "\n".join(complaints))


if __name__ == "__main__":
    main()
