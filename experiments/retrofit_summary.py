"""What the runs of the retrofit experiment say, by corpus and method."""

import json
from collections.abc import Sequence

from .runs import mean_and_spread

FIGURES = ("loss", "other_loss", "validation_loss", "mean_accuracy")


def summarise(
    stages: dict[str, list[dict]], rivals: dict[str, str], recipes: Sequence[tuple[str, str, str]] = ()
) -> dict:
    """
    Args:
        stages: The records of the stages that are done, by name.
        rivals: Nested method -> the method of the source that it is compared with, at equal steps under this name and
            at equal compute under the name "…, longer".
        recipes: Corpus, best recipe of the nested method, and that of the source at equal compute.
    """
    records = list({json.dumps(each["settings"]): each for stage in stages.values() for each in stage}.values())
    before = {each["settings"]["corpus"]: each for each in records if each["settings"]["method"] == "source"}
    trained = [each for each in records if each["settings"]["steps"] > 0]
    chosen = choose(trained)
    results: dict = {}
    for (corpus, method), (same, tries) in chosen.items():
        if corpus not in before:
            continue
        start = before[corpus]["result"]
        results.setdefault(corpus, {})[method] = describe(same, start) | {"settings_tried": tries}
    corpora = list(results)
    pairs = [
        (corpus, nested, name, at)
        for corpus in corpora
        for nested, rival in rivals.items()
        for at, name in (("equal steps", rival), ("equal compute", f"{rival}, longer"))
    ]
    pairs += [(*recipe, "equal compute") for recipe in recipes]
    return {
        "stages": list(stages),
        "before": {corpus: untrained(corpus, records) for corpus in before},
        "comparisons": [compared for pair in pairs if (compared := compare(*pair, chosen))],
        "verdict": {corpus: verdict(corpus, chosen) for corpus in corpora},
        "results": results,
    }


def choose(records: list[dict]) -> dict[tuple[str, str], tuple[list[dict], int]]:
    """
    For each corpus and method the runs that differ in the seed alone: of the settings with most seeds those with the
    least validation loss. And how many settings were tried.
    """
    groups: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for record in records:
        settings = record["settings"]
        alike = json.dumps({name: value for name, value in settings.items() if name != "seed"})
        groups.setdefault((settings["corpus"], settings["method"]), {}).setdefault(alike, []).append(record)
    return {
        key: (min(tried.values(), key=lambda same: (-len(same), mean(same, "validation_loss"))), len(tried))
        for key, tried in groups.items()
    }


def mean(records: list[dict], figure: str) -> float:
    return mean_and_spread([record["result"][figure] for record in records])["mean"]


def describe(same: list[dict], start: dict) -> dict:
    """Figures over the seeds. `forgotten` is the rise of the loss on the text that was not trained on."""
    results = [record["result"] for record in same]
    settings = same[0]["settings"]
    described = {name: settings[name] for name in ("learning_rate", "scalar_learning_rate", "steps")}
    for figure in FIGURES:
        if figure in results[0]:
            values = [result[figure] for result in results]
            described[figure] = mean_and_spread(values) | {"values": values}
    forgotten = [result["other_loss"] - start["other_loss"] for result in results]
    described["forgotten"] = mean_and_spread(forgotten) | {"values": forgotten}
    for task in results[0].get("accuracy", {}):
        values = [result["accuracy"][task] for result in results]
        described.setdefault("accuracy", {})[task] = mean_and_spread(values)
    return described | {
        "trained_parameters": results[0]["trained_parameters"],
        "training_flops": results[0]["training_flops"],
        "training_cpu_seconds": round(sum(result["training_cpu_seconds"] for result in results) / len(results), 1),
        "scalars": {
            kind: over_seeds([result["scalars"][kind] for result in results]) for kind in results[0]["scalars"]
        },
    }


def over_seeds(layers: list[list[float | None]]) -> list[float | None]:
    """The mean of each layer."""
    return [None if each[0] is None else round(sum(each) / len(each), 5) for each in zip(*layers, strict=True)]


def untrained(corpus: str, records: list[dict]) -> dict:
    """The source, and by how much the model with closed gates differs from it: by nothing."""
    same = [each for each in records if each["settings"]["steps"] == 0 and each["settings"]["corpus"] == corpus]
    source, *others = [each["result"] for each in sorted(same, key=lambda each: each["settings"]["order"])]
    kept = {name: source[name] for name in (*FIGURES, "accuracy") if name in source}
    return kept | {"closed_gates_differ_by": max((abs(each["loss"] - source["loss"]) for each in others), default=None)}


def compare(corpus: str, nested: str, rival: str, at: str, chosen: dict) -> dict | None:
    """Nested minus rival, seed by seed: runs with one seed see the same data in the same order."""
    if (corpus, nested) not in chosen or (corpus, rival) not in chosen:
        return None
    by_seed = [
        {record["settings"]["seed"]: record["result"] for record in chosen[corpus, method][0]}
        for method in (nested, rival)
    ]
    seeds = sorted(set(by_seed[0]) & set(by_seed[1]))
    compared = {"corpus": corpus, "nested": nested, "rival": rival, "at": at}
    for figure in FIGURES:
        if seeds and figure in by_seed[0][seeds[0]]:
            values = [by_seed[0][seed][figure] - by_seed[1][seed][figure] for seed in seeds]
            compared[figure] = mean_and_spread(values) | {"values": values}
    return compared


def verdict(corpus: str, chosen: dict) -> dict | None:
    """
    The best nested method beside the best of the source's that had no less compute, both by validation loss, out of
    those with most seeds.
    """
    most = max(len(same) for (kind, _), (same, _) in chosen.items() if kind == corpus)
    ready = {method: same for (kind, method), (same, _) in chosen.items() if kind == corpus and len(same) == most}
    sides: dict[bool, list[str]] = {True: [], False: []}
    for method, same in sorted(ready.items(), key=lambda item: mean(item[1], "validation_loss")):
        sides[same[0]["settings"]["order"] != 1].append(method)
    if not sides[True] or not sides[False]:
        return None
    nested = sides[True][0]
    cost = ready[nested][0]["result"]["training_flops"]
    fair = [method for method in sides[False] if ready[method][0]["result"]["training_flops"] >= 0.97 * cost]
    if not fair:
        return None
    return compare(corpus, nested, fair[0], "no less compute", chosen)
