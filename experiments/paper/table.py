"""
Write the tables of PAPER.md: figures of the paper, and beside them those of our own runs, if any.

    python -m experiments.paper.table
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from statistics import fmean

from common.report import fill, table

from .presets import ARMS, MAIN, PRETRAINING, RETROFIT
from .tasks import RESULTS, TASKS

PAGE = Path(__file__).parent / "PAPER.md"
NOT_RUN = "not run"
MEAN = "mean"
MODEL = "| model | task | in lm-eval | paper: standard | paper: Nexus | ours: standard | ours: Nexus |"
ABLATION = "| row | refined | weights shared | order | `ARM` | task | paper | ours |"

# The paper's own figures, in percent, in the order of TASKS, and the mean that it prints: standard, Nexus.
TABLE_1 = {
    "pythia-70m": ("20.8 35.9 35.6 27.6 56.9 61.5 39.7", "20.4 38.2 35.8 28.7 58.6 68.5 41.7"),
    "pythia-160m": ("20.0 38.5 38.0 26.0 60.0 68.6 41.9", "21.1 40.5 38.5 28.5 60.5 71.3 43.4"),
    "pythia-410m": ("22.5 39.4 37.5 28.5 60.1 70.8 43.1", "22.6 41.5 38.4 29.4 60.8 73.3 44.3"),
    "pythia-1b": ("23.2 44.0 39.5 29.6 62.5 75.8 45.8", "23.0 45.5 39.9 29.0 63.6 77.7 46.5"),
}
TABLE_2 = {  # arm: name, refined, weights shared, order; figures
    "standard": (("Baseline", "-", "-", "-"), "20.8 35.9 35.6 27.7 56.9 61.5 39.7"),
    "nexus-q": (("Nexus-Q", "Q", "no", "2"), "19.8 37.4 34.5 28.6 57.9 62.1 40.0"),
    "nexus-qk": (("Nexus-QK", "Q, K", "no", "2"), "20.7 36.7 35.9 28.1 57.7 66.3 40.9"),
    "nexus-qkv": (("Nexus-QKV", "Q, K, V", "no", "2"), "20.9 38.0 35.4 29.3 57.9 63.6 40.9"),
    "nexus-qk-shared": (("Nexus-QK-Shared", "Q, K", "yes", "2"), "20.6 35.7 36.7 27.3 60.1 63.0 40.6"),
    "nexus-recursive": (("Nexus-Recursive", "Q, K", "yes", "3"), "20.1 39.1 36.8 28.7 58.2 65.9 41.5"),
    "eq7": (("none: Eq. 7 to 9", "Q, K", "no weights", "2"), "- - - - - - -"),
}
TABLE_3 = {
    "qwen2.5-1.5b": ("78.6 19.4 27.6 41.9", "80.1 19.4 28.0 42.5"),
    "qwen2.5-7b": ("92.1 45.2 40.1 59.1", "92.1 47.5 40.7 60.1"),
}
SIZE = "pythia-70m"  # of Table 2


def reports(folder: Path) -> list[dict]:
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            report = json.loads(file.read_text())
            found.append({key: report[key] for key in ("preset", "arm", "tasks")} | report)
        except (ValueError, KeyError, TypeError):
            sys.exit(f"table: {file} was not written by evaluate.py; move it away.")
    return found


def score(report: dict, task: str, group: str) -> float | None:
    """Of a task; of MEAN if the run has them all."""
    scores = {name: each["score"] for name, each in report["tasks"].items()}
    whole = {name for name, each in TASKS.items() if each.group == group}
    return scores.get(task) if task != MEAN else fmean(scores.values()) if whole == scores.keys() else None


def cell(found: list[dict], preset: str, task: str, group: str, arms: list[str]) -> str:
    """Scores of all our runs of this model with one of these arms, the first expected, with what a reader must know."""
    texts = []
    for report in found:
        value = score(report, task, group)
        if report["preset"] != preset or report["arm"] not in arms or value is None:
            continue
        arm, own_order = report["arm"], ARMS[report["arm"]]["attention_order"]
        order = report.get("order", own_order)
        notes = {
            arm: arm != arms[0],
            f"order {order}": order != own_order,
            report.get("not_ours"): report.get("not_ours"),
            f"{report.get('tokens', 0) / 1e9:.3g}B tokens": "tokens" in report,
            "training not finished": report.get("steps") != report.get("planned_steps"),
            f"first {report.get('limit')} questions only": report.get("limit"),
            "local data": report.get("local_data"),
        }
        notes = ", ".join(text for text, holds in notes.items() if holds)
        texts.append(f"{value:.1f} ({notes})" if notes else f"{value:.1f}")
    return "; ".join(texts) or NOT_RUN


def named(group: str) -> list[tuple[str, str, str]]:
    """For each task of a group, and MEAN: its name, its title and what it is in lm-eval."""
    rows = [
        (name, task.title, f"`{name}`, {task.metric.removesuffix(',none').replace(',', ', ')}")
        for name, task in TASKS.items()
        if task.group == group
    ]
    return [*rows, (MEAN, MEAN, "")]


def by_model(found: list[dict], group: str, presets: list[str], paper: dict[str, tuple[str, str]]) -> str:
    """Tables 1 and 3. The toy has rows only if it was run."""
    nexus = [MAIN[group], *(arm for arm in ARMS if arm not in (MAIN[group], "standard"))]
    rows = []
    for preset in presets:
        figures = zip(*(each.split() for each in paper.get(preset, ("- " * 9, "- " * 9))), strict=True)
        for (name, title, metric), pair in zip(named(group), figures, strict=False):
            ours = [cell(found, preset, name, group, arms) for arms in (["standard"], nexus)]
            if preset in paper or ours != [NOT_RUN, NOT_RUN]:
                rows.append([preset, title, metric, *pair, *ours])
    return table(MODEL, rows)


def ablation(found: list[dict]) -> str:
    """Table 2."""
    rows = []
    for arm, (row, figures) in TABLE_2.items():
        for (name, title, _), figure in zip(named("pretraining"), figures.split(), strict=True):
            rows.append([*row, f"`{arm}`", title, figure, cell(found, SIZE, name, "pretraining", [arm])])
    return table(ABLATION, rows)


def page(found: list[dict]) -> str:
    """PAPER.md with its tables made anew."""
    tables = {
        "Table 1": partial(by_model, found, "pretraining", list(PRETRAINING), TABLE_1),
        "Table 2": partial(ablation, found),
        "Table 3": partial(by_model, found, "reasoning", list(RETROFIT), TABLE_3),
    }
    return fill(PAGE.read_text(encoding="utf-8"), tables)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m experiments.paper.table", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    found = reports(options.results)
    options.out.write_text(page(found))
    print(f"table: {options.out}, with {len(found)} results")


if __name__ == "__main__":
    main()
