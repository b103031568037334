"""
RESULTS.md, and the table that model cards quote, from the committed results: `python -m experiments.page`.

Their text is a template, in which every figure is named by where it stands in the summary of an experiment.
"""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .runs import RESULTS, ROOT

PAGE = ROOT.parent / "RESULTS.md"
EVIDENCE = ROOT.parent / "conversion_scripts" / "hub" / "evidence.md"


def percent(spread: dict | float) -> str:
    """A share as a percentage; of several seeds the mean, and from the worst to the best where they differ."""
    if not isinstance(spread, dict):
        return f"{100 * spread:.0f} %"
    low, high = 100 * spread["min"], 100 * spread["max"]
    return f"{100 * spread['mean']:.0f} %" + (f" ({low:.0f} to {high:.0f})" if high - low >= 1 else "")


def figure(spread: dict | float, digits: int = 3, sign: str = "-") -> str:
    """A number, positive ones too with a sign of "+"; of several seeds the mean, and the extremes where they differ."""
    if not isinstance(spread, dict):
        return f"{spread:{sign}.{digits}f}"
    mean, low, high = (f"{spread[name]:{sign}.{digits}f}" for name in ("mean", "min", "max"))
    return mean if low == high else f"{mean} ({low} to {high})"


def page(results: Path = RESULTS) -> str:
    """The text of RESULTS.md. What was not run, or not to its end, is said to be so."""
    return fill("RESULTS.md.j2", results)


def evidence(results: Path = RESULTS) -> str:
    """The table that model cards quote."""
    return fill("evidence.md.j2", results)


def fill(template: str, results: Path) -> str:
    environment = Environment(
        loader=FileSystemLoader(ROOT), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters |= {"percent": percent, "figure": figure}
    started = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    reports = {name: report for name, report in started.items() if report["finished"]}
    return environment.get_template(template).render(reports=reports, started=started).strip() + "\n"


def main() -> None:
    for path, text in ((PAGE, page()), (EVIDENCE, evidence())):
        path.write_text(text, encoding="utf-8")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
