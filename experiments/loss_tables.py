"""The tables of losses in docs/results/*.md, from the committed results."""

import json

from common.report import table

from .quoted import best_first, figure, percent, summaries, times
from .runs import RESULTS


def language(stage: str) -> str:
    rows = []
    for name, row in best_first(summaries()["language"][stage]):
        cost = [f"{row['parameters']:,}", row["steps"], times(row["relative_compute"])]
        rows.append([name, figure(row["bits_per_byte"]), f"{row['learning_rate']:.2g}", *cost])
    return table("| model | held-out bits per byte | rate | parameters | steps | training FLOPs |", rows)


def nestings() -> str:
    compute, steps = (summaries()["language"][f"map, equal {each}"] for each in ("compute", "steps"))
    rows = [
        [name, *(figure(each["bits_per_byte"]["mean"]) for each in (row, steps[name]))]
        for name, row in best_first(compute)
    ]
    return table("| orders of the layers | equal compute | equal steps |", rows)


def forms() -> str:
    found = {name: row for name, row in summaries()["forms"].items() if row["task"] == "language"}
    rows = [
        [name, figure(row["bits_per_byte"]), f"{row['learning_rate']:g}", f"{row['parameters']:,}", row["steps"]]
        for name, row in best_first(found)
    ]
    return table("| model | held-out bits per byte, equal compute | rate | parameters | steps |", rows)


def windows() -> str:
    rows = [
        [name, figure(row["bits_per_byte"]), f"{row['learning_rate']:g}", row["steps"]]
        for name, row in summaries()["window"]["language"].items()
    ]
    return table("| inner levels see | held-out bits per byte, equal compute | rate | steps |", rows)


def scale() -> str:
    rows = []
    for stage, models in summaries()["scale"].items():
        for row, found in models.items():
            gain = figure(found["gain"]["bits_per_byte"], sign="+") if "gain" in found else ""
            rows.append(
                [stage, row, figure(found["bits_per_byte"]), gain, f"{found['learning_rate']:g}", found["steps"]]
            )
    head = "| equal compute | nested | held-out bits per byte | gain over standard, seed by seed | rate | steps |"
    return table(head, rows)


def repeated_pairs() -> str:
    rows = [
        [stage, row, *(figure(found["gain"][name], 2, "+") for name in ("bits_repeated", "bits_new"))]
        for stage, models in summaries()["scale"].items()
        for row, found in models.items()
        if "gain" in found
    ]
    return table("| gain in bits per token | nested | of tokens that repeat a pair | of all others |", rows)


def arms() -> str:
    found, rows = summaries()["arms"], []
    (base, *_) = found.values()
    for name, row in found.items():
        bits = [figure(row[at]["bits_per_byte"]) if at in row else "" for at in ("equal steps", "equal compute")]
        relative = row["equal steps"]["training_flops"] / base["equal steps"]["training_flops"]
        cost = [f"{row['learning_rate']:g}", f"{row['parameters']:,}", times(relative)]
        rows.append([name, *bits, *cost, f"{100 * row['paper']:.1f} %"])
    head = "| | bits per byte, equal steps | equal compute | rate | parameters | FLOPs of a step |"
    return table(f"{head} in the paper: mean accuracy at 70M |", rows)


def gates() -> str:
    found = json.loads((RESULTS / "gates.json").read_text())["summary"]
    rows = [[form, *map(figure, losses.values())] for form, losses in found.items() if form != "source"]
    return table("| all gates at | 0.02 | 0.05 | 0.1 |", rows)


def rates(stage: str) -> str:
    found = summaries()["language"][stage]
    names = list(next(iter(found.values())))
    head = " | ".join(f"{float(name):.2g}" for name in names)
    rows = [[name, *map(figure, row.values())] for name, row in found.items()]
    return table(f"| bits per byte at a rate of | {head} |", rows)


def retrofit(corpus: str) -> str:
    before, methods = (summaries()["retrofit"][key][corpus] for key in ("before", "results"))
    base = methods["source, everything"]["training_flops"]
    answers = "mean_accuracy" in before
    rows = [["nothing", figure(before["loss"]), *([percent(before["mean_accuracy"])] if answers else []), *[""] * 5]]
    for name, row in methods.items():
        few = {1: " (one seed)", 2: " (two seeds)", 3: ""}[row["loss"]["seeds"]]
        used = [f"{row[rate]:.2g}" for rate in ("learning_rate", "scalar_learning_rate") if row[rate] is not None]
        cells = [figure(row["loss"]), *([percent(row["mean_accuracy"])] if answers else []), figure(row["forgotten"])]
        cells += ["; ".join(used), f"{row['trained_parameters']:,}", row["steps"], times(row["training_flops"] / base)]
        rows.append([name + few, *cells])
    right = " answers right |" if answers else ""
    head = f"| trained | held-out loss |{right} forgotten | rate | trained parameters | steps | training FLOPs |"
    return table(head, rows)


def comparisons() -> str:
    rows = [
        [f"{each['nested']} less {each['rival']}", each["corpus"], each["at"], figure(each["loss"], sign="+")]
        for each in summaries()["retrofit"]["comparisons"]
    ]
    return table("| nested less rival, seed by seed | on | at | held-out loss |", rows)


def retrofit_forms(length: str) -> str:
    rows = [["nothing", figure(summaries()["retrofit_forms"]["before"]["loss"]), *[""] * 6]]
    for name, row in summaries()["retrofit_forms"][length].items():
        gain = figure(row["gain"], sign="+") if "gain" in row else ""
        gate = "" if row["widest_gate"] is None else figure(row["widest_gate"])
        cells = [figure(row["loss"]), gain, figure(row["forgotten"]), f"{row['learning_rate']:g}", gate]
        rows.append([name, *cells, f"{row['trained_parameters']:,}", row["steps"]])
    head = "held-out loss | gain over the source, seed by seed | forgotten | rate | widest gate | trained parameters"
    return table(f"| equal compute | {head} | steps |", rows)
