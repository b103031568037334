"""
Write PAPER.md: figures of the paper, and beside them those of our own runs, if any.

    python -m experiments.paper.table
"""

import argparse
import json
import sys
from pathlib import Path

from .presets import PRETRAINING, RETROFIT
from .tasks import RESULTS, TASKS

FOLDER = Path(__file__).parent
NOT_RUN, NOT_ENTERED = "not run", "?"
COLUMNS = ("model", "task", "in lm-eval", "paper: standard", "paper: Nexus", "ours: standard", "ours: Nexus")

# (preset, lm-eval task): standard, Nexus. Never fill in a figure without its source.
PAPER = {
    ("pythia-70m", "sciq"): (61.5, 68.5),
    ("pythia-1b", "piqa"): (62.5, 63.6),
    ("qwen2.5-1.5b", "minerva_math500"): (78.6, 80.1),
    ("qwen2.5-7b", "aime24"): (45.2, 47.5),
}
HEAD = """\
# The paper's figures, and ours

Written by `python -m experiments.paper.table`. Accuracy in percent.

- The paper (arXiv 2512.03377): four pairs of its figures are entered so far. **?** is a figure of its Tables 1 and 3
  that is not. The paper does not state its tokens, learning rates, SFT data, seeds or number of samples.
- Ours: from the files in `results/`, which [evaluate.py](evaluate.py) writes. *{not_run}* means just that.
- Equal figures are not to be expected: data and budget are our choice, see [README.md](README.md). What can be compared
  is the difference between standard and Nexus, trained alike.

"""


def reports(folder: Path) -> list[dict]:
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            report = json.loads(file.read_text())
            found.append({key: report[key] for key in ("preset", "order", "tasks")} | report)
        except (ValueError, KeyError, TypeError):
            sys.exit(f"table: {file} was not written by evaluate.py; move it away.")
    return found


def variant(report: dict) -> str:
    orders = report["order"] if isinstance(report["order"], list) else [report["order"]]
    return "standard" if set(orders) == {1} else "Nexus"


def cell(found: list[dict], preset: str, task: str, kind: str) -> str:
    """Scores of all our runs of this model, with what a reader must know of them."""
    texts = []
    for report in found:
        if (report["preset"], variant(report)) != (preset, kind) or task not in report["tasks"]:
            continue
        notes = []
        if kind == "Nexus" and report["order"] != 2:
            notes.append(f"order {report['order']}")
        if report.get("gated"):
            notes.append("with gates")
        if report.get("not_ours"):
            notes.append(report["not_ours"])
        if "tokens" in report:
            notes.append(f"{report['tokens'] / 1e9:.3g}B tokens")
        if report.get("steps") != report.get("planned_steps"):
            notes.append("training not finished")
        if report.get("limit"):
            notes.append(f"first {report['limit']} questions only")
        if report.get("local_data"):
            notes.append("local data")
        note = f" ({', '.join(notes)})" if notes else ""
        texts.append(f"{report['tasks'][task]['score']:.1f}{note}")
    return "; ".join(texts) or NOT_RUN


def page(found: list[dict]) -> str:
    lines = HEAD.format(not_run=NOT_RUN).splitlines()
    for group, presets, title in (
        ("pretraining", PRETRAINING, "From scratch, zero-shot"),
        ("reasoning", RETROFIT, "Retrofitted by SFT"),
    ):
        lines += [f"## {title}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for preset in presets:
            for name, task in TASKS.items():
                ours = [cell(found, preset, name, kind) for kind in ("standard", "Nexus")]
                if task.group != group or (preset == "toy" and ours == [NOT_RUN, NOT_RUN]):
                    continue
                paper = ["-", "-"] if preset == "toy" else PAPER.get((preset, name), (NOT_ENTERED, NOT_ENTERED))
                metric = task.metric.removesuffix(",none").replace(",", ", ")
                row = [preset, task.title, f"`{name}`, {metric}", *map(str, paper), *ours]
                lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m experiments.paper.table", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=FOLDER / "PAPER.md")
    options = parser.parse_args(arguments)
    found = reports(options.results)
    options.out.write_text(page(found))
    print(f"table: {options.out}, with {len(found)} results")


if __name__ == "__main__":
    main()
