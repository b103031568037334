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
    return {
        stage: by_rate(records) if stage.endswith("learning rates") else by_model(records)
        for stage, records in stages.items()
    }


def by_rate(records: list[dict]) -> dict:
    """Held-out bits per byte of one seed, by variant and learning rate."""
    summary: dict = {}
    for record in records:
        rates = summary.setdefault(record["settings"]["variant"], {})
        rates[str(record["settings"]["learning_rate"])] = round(record["result"]["bits_per_byte"], 4)
    return summary


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


def nestings(axis, summary: dict, standard: float) -> None:
    """A map: which layers are nested x the order that they have, coloured by how far it is from the standard model."""
    orders = sorted({name.replace("1", "").strip()[0] for name in summary})
    rows = list(dict.fromkeys(name.replace(orders[-1], orders[0]) for name in summary))
    values = [[summary[row.replace(orders[0], order)]["bits_per_byte"]["mean"] for order in orders] for row in rows]
    reach = max(abs(value - standard) for row in values for value in row)
    axis.imshow(values, cmap="RdBu_r", vmin=standard - reach, vmax=standard + reach, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            dark = abs(value - standard) > 0.6 * reach
            axis.text(x, y, f"{value:.3f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(len(orders)), [f"order {order}" for order in orders], fontsize=8)
    axis.set_yticks(range(len(rows)), [row.replace(orders[0], "n") for row in rows], fontsize=8)
    axis.set_xlabel(f"n: nested; blue: fewer bits per byte than standard, {standard:.3f}", fontsize=8)


def plot(report: dict, path: Path) -> None:
    summary = report["summary"]
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")
    dots(axes[0][0], summary["ablation"], "Equal parameters and steps, three seeds")
    standard = summary["ablation"]["standard"]["bits_per_byte"]["mean"]
    for axis, stage in zip(axes[0][1:], ("map, equal steps", "map, equal compute"), strict=True):
        nestings(axis, summary[stage], standard)
        axis.set_title(f"Which layers are nested{stage.removeprefix('map')}, one seed", fontsize=9)
    dots(axes[1][0], summary["finalists"], "Equal compute, three seeds")
    dots(axes[1][1], summary["longer"], "Longer, equal compute, three seeds")
    dots(axes[1][2], summary["larger"], "Larger, equal compute, three seeds")
    device = report["device"]["name"]
    figure.suptitle(f"Shakespeare, held-out works; {device}, {report['date'][:10]}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    curves(axes[0], report["runs"], summary["finalists"], "Training loss at equal compute")
    curves(axes[1], report["runs"], summary["longer"], "Longer")
    figure.savefig(path.with_name(f"{path.stem}_curves.png"), dpi=110)
    plt.close(figure)


def curves(axis, runs: list[dict], stage: dict, title: str) -> None:
    """Training loss against training FLOPs, mean of the seeds."""
    colours = plt.get_cmap("tab20").colors[::2] + plt.get_cmap("tab20").colors[1::2]
    for (name, figures), shade in zip(stage.items(), colours, strict=False):
        same = [run for run in runs if is_of(run, name, figures)]
        points = [[value for _, value in run["result"]["curve"]] for run in same]
        count = min(map(len, points))
        mean = [sum(each[i] for each in points) / len(points) for i in range(count)]
        share = [(i + 1) / count * figures["training_flops"] for i in range(count)]
        style = "--" if name.startswith("standard") else "-"
        axis.plot(share[2:], mean[2:], style, color=shade, label=name, linewidth=1.3)
    axis.set(xlabel="training FLOPs", ylabel="training loss, nats per token")
    axis.set_title(title, fontsize=9)
    axis.grid(linewidth=0.3)
    axis.legend(fontsize=8, frameon=False)


def is_of(run: dict, name: str, figures: dict) -> bool:
    """Whether the run is one of those that the summary's `figures` of a model are the mean of."""
    named = label(run["settings"]) == name.removesuffix(", deeper").removesuffix(", wider")
    result = run["result"]
    alike = all(run["settings"][key] == figures[key] for key in ("learning_rate", "steps"))
    return named and alike and all(result[key] == figures[key] for key in ("parameters", "training_flops"))
