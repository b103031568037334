"""What the language-modelling runs say: a summary by stage, and the figure."""

from pathlib import Path

import matplotlib

from .runs import mean_and_spread

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STANDARD, NESTED, RIVAL = "#555555", "#d55e00", "#0072b2"


def label(run: dict) -> str:
    """ "2 1 1 1" for a list of orders, else the variant's name; a standard model of another shape says which."""
    variant = run["variant"]
    if isinstance(variant, list):
        return " ".join(map(str, variant + [1] * (run["layers"] - len(variant))))
    return variant


def summarise(stages: dict[str, list[dict]]) -> dict:
    """For each stage and model: held-out bits per byte over the seeds, parameters, and compute over the standard's."""
    summary: dict = {"learning rates": {}}
    for record in stages["learning rates"]:
        rates = summary["learning rates"].setdefault(record["settings"]["variant"], {})
        rates[str(record["settings"]["learning_rate"])] = round(record["result"]["bits_per_byte"], 4)
    return summary | {stage: by_model(records) for stage, records in stages.items() if stage != "learning rates"}


def by_model(records: list[dict]) -> dict:
    groups: dict[str, list[dict]] = {}
    shape = records[0]["settings"]
    for record in records:
        name = label(record["settings"])
        if record["settings"]["layers"] != shape["layers"]:
            name += ", deeper"
        if record["settings"]["hidden_size"] != shape["hidden_size"]:
            name += ", wider"
        groups.setdefault(name, []).append(record)
    base = next((same[0]["result"] for name, same in groups.items() if name == "standard"), None)
    summary = {}
    for name, same in groups.items():
        first = same[0]["result"]
        summary[name] = {
            "bits_per_byte": mean_and_spread([record["result"]["bits_per_byte"] for record in same]),
            "parameters": first["parameters"],
            "steps": same[0]["settings"]["steps"],
            "learning_rate": same[0]["settings"]["learning_rate"],
            "training_flops": first["training_flops"],
            "cpu_seconds": round(sum(record["cpu_seconds"] for record in same) / len(same), 1),
        }
        if base:
            summary[name]["relative_compute"] = round(first["training_flops"] / base["training_flops"], 3)
    return summary


def colour(name: str) -> str:
    return RIVAL if name.startswith("looped") else STANDARD if name.startswith("standard") else NESTED


def dots(axis, summary: dict, title: str) -> None:
    """One line per model, best at the top: the mean, and a bar from the best to the worst seed."""
    ranked = sorted(summary.items(), key=lambda item: -item[1]["bits_per_byte"]["mean"])
    for place, (name, figures) in enumerate(ranked):
        spread = figures["bits_per_byte"]
        axis.plot([spread["min"], spread["max"]], [place, place], color=colour(name), linewidth=2)
        axis.plot(spread["mean"], place, "o", color=colour(name), markersize=6)
    names = []
    for name, figures in ranked:
        compute = figures.get("relative_compute")
        names.append(name if compute is None or abs(compute - 1) < 0.02 else f"{name}  ({compute:.2f} x FLOPs)")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.grid(axis="x", linewidth=0.3)
    axis.set_xlabel("held-out bits per byte", fontsize=8)


def plot(report: dict, path: Path) -> None:
    summary = report["summary"]
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")
    dots(axes[0][0], summary["ablation"], "Equal parameters and steps, three seeds")
    standard = {"standard": summary["ablation"]["standard"]}
    dots(axes[0][1], summary["map, equal steps"] | standard, "Which layers are nested: equal steps, one seed")
    dots(axes[0][2], summary["map, equal compute"] | standard, "Which layers are nested: equal compute, one seed")
    dots(axes[1][0], summary["finalists"], "Equal compute, three seeds")
    dots(axes[1][1], summary["longer"], "Longer, equal compute, three seeds")
    dots(axes[1][2], summary["larger"], "Larger, equal compute, three seeds")
    device = report["device"]["name"]
    figure.suptitle(f"Shakespeare, held-out works; {device}, {report['date'][:10]}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    curves(axis, report["runs"], summary["longer"])
    figure.savefig(path.with_name(f"{path.stem}_curves.png"), dpi=110)
    plt.close(figure)


def curves(axis, runs: list[dict], longer: dict) -> None:
    """Training loss against training FLOPs of the long runs, mean of the seeds."""
    groups: dict[str, list[dict]] = {}
    steps = {figures["steps"] for figures in longer.values()}
    for run in runs:
        name = label(run["settings"])
        figures = longer.get(name)
        if figures and run["settings"]["steps"] in steps and run["result"]["parameters"] == figures["parameters"]:
            groups.setdefault(name, []).append(run)
    styles = iter(("-", "--", "-.", ":") * 3)
    for name, same in groups.items():
        points = [[value for _, value in run["result"]["curve"]] for run in same]
        count = min(map(len, points))
        mean = [sum(each[i] for each in points) / len(points) for i in range(count)]
        share = [(i + 1) / count * same[0]["result"]["training_flops"] for i in range(count)]
        axis.plot(share[2:], mean[2:], next(styles), color=colour(name), label=name, linewidth=1.2)
    axis.set(xlabel="training FLOPs", ylabel="training loss, nats per token")
    axis.set_title("Training loss at equal compute", fontsize=9)
    axis.grid(linewidth=0.3)
    axis.legend(fontsize=8, frameon=False)
