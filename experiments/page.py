"""
RESULTS.md, from the committed results: `python -m experiments.page`. Every figure in it comes out of a JSON file.

The text is a template, RESULTS.md.j2, in which a figure is named by where it stands in the summary of an experiment.
"""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .runs import RESULTS, ROOT

PAGE = ROOT.parent / "RESULTS.md"


def percent(spread: dict | float) -> str:
    """A share as a percentage; of several seeds the mean, and from the worst to the best where they differ."""
    if not isinstance(spread, dict):
        return f"{100 * spread:.0f} %"
    low, high = 100 * spread["min"], 100 * spread["max"]
    return f"{100 * spread['mean']:.0f} %" + (f" ({low:.0f} to {high:.0f})" if high - low >= 1 else "")


def figure(spread: dict | float, digits: int = 3) -> str:
    """A number; of several seeds the mean, and from the smallest to the largest."""
    if not isinstance(spread, dict):
        return f"{spread:.{digits}f}"
    mean = f"{spread['mean']:.{digits}f}"
    return mean if spread["seeds"] == 1 else f"{mean} ({spread['min']:.{digits}f} to {spread['max']:.{digits}f})"


def page(results: Path = RESULTS) -> str:
    """The text of RESULTS.md. What was not run, or not to its end, is said to be so."""
    environment = Environment(
        loader=FileSystemLoader(ROOT), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters |= {"percent": percent, "figure": figure}
    started = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    reports = {name: report for name, report in started.items() if report["finished"]}
    return environment.get_template("RESULTS.md.j2").render(reports=reports, started=started).rstrip() + "\n"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
