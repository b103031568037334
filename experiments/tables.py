"""The tables of RESULTS.md, docs/results/*.md and the model card, from the committed results."""

import json
from functools import cache, partial

from common.report import table

from .runs import RESULTS, grouped

TITLES = {
    "scale": "Does the gain last?",
    "recall": "One layer, several hops",
    "hops": "Pointer chasing",
    "rank": "What a logit can depend on",
    "language": "Language modelling, with W_O",
    "forms": "Which form is the default",
    "window": "How far inner levels have to see",
    "chains": "Where nesting should pay",
    "encoder": "In an encoder",
    "retrofit": "Retrofit of SmolLM2-135M",
}
TRIED = "**not run**, tried out at toy size"
NOT_RUN = {"arms": "The paper's Table 2, in small", "retrofit_forms": "Retrofit in the paper's form, and in Eq. 12"}


def percent(spread: dict | float) -> str:
    """A share as a percentage; of several seeds the mean, and from the worst to the best where they differ."""
    if not isinstance(spread, dict):
        return f"{100 * spread:.0f} %"
    low, high = 100 * spread["min"], 100 * spread["max"]
    return f"{100 * spread['mean']:.0f} %" + (f" ({low:.0f} to {high:.0f})" if high - low >= 1 else "")


def figure(spread: dict | float, digits: int = 3, sign: str = "-") -> str:
    """A number, positive ones too with a sign of "+"; of several seeds the mean, and the extremes where they differ."""
    if not isinstance(spread, dict):
        return f"{spread:{sign},.{digits}f}"
    mean, low, high = (f"{spread[name]:{sign},.{digits}f}" for name in ("mean", "min", "max"))
    return mean if low == high else f"{mean} ({low} to {high})"


@cache
def reports() -> dict[str, dict]:
    return {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in TITLES}


@cache
def summaries() -> dict[str, dict]:
    """Those of the experiments, by what the pages quote, and two things more."""
    found = {name: dict(report["summary"]) for name, report in reports().items() if name != "forms"}
    marker = found["rank"]["marker"]
    found["rank"]["marker"] = {f"{row['variant']}, {row['width']} wide, {row['length']} tokens": row for row in marker}
    found["forms"] = {form_name(row): row for row in reports()["forms"]["summary"]}
    found["retrofit"]["widest gate"] = {
        corpus: {
            trained: max(max(gates) for gates in methods[f"order 2, {trained}"]["scalars"].values())
            for trained in ("everything", "gates")
        }
        for corpus, methods in found["retrofit"]["results"].items()
    }
    return found


def times(relative: float) -> str:
    return f"{relative:.2f} x"


def costs(row: dict) -> list[str]:
    return [f"{row['learning_rate']:g}", f"{row['parameters']:,}", times(row["relative_compute"])]


def best_first(models: dict[str, dict]) -> list[tuple[str, dict]]:
    return sorted(models.items(), key=lambda item: item[1]["bits_per_byte"]["mean"])


def state() -> str:
    rows = []
    for name, title in TITLES.items():
        report = reports()[name]
        done = "" if report["finished"] else "**unfinished**, "
        made = f"{done}{len(report['runs'])} runs, {report['date'][:10]}, {report['device']['name']}"
        link = f"[{title}](docs/results/{name}.md)"
        rows.append([link, made, f"{report['cpu_hours']:.1f}", report["budget_cpu_hours"]])
    rows += [[f"{title}: `python -m experiments {name}`", TRIED, "", ""] for name, title in NOT_RUN.items()]
    rows.append(["[The paper's own runs](experiments/paper/README.md)", TRIED, "", ""])
    spent, budget = (sum(report[key] for report in reports().values()) for key in ("cpu_hours", "budget_cpu_hours"))
    rows.append(["all", "", f"{spent:.1f}", f"{budget:.1f}"])
    return table("| experiment | runs | CPU hours | budget |", rows)


def answers(experiment: str, models: str, tested: dict[str, str]) -> str:
    """`tested`: key of the results -> head of the column."""
    rows = [
        [name, *(percent(row["accuracy"][key]) for key in tested), *costs(row)]
        for name, row in summaries()[experiment][models].items()
    ]
    return table(f"| answers right | {' | '.join(tested.values())} | rate | parameters | training FLOPs |", rows)


def ranks() -> str:
    rows = []
    for variant, row in summaries()["rank"]["ranks"].items():
        before, after = row["initial"], row["trained"]
        cells = [figure(each["context_rank"], 0) for each in (before, after)] + [figure(after["context_share"], 2)]
        cells += [figure(each["logit_rank"], 0) for each in (before, after)]
        rows.append([variant, *cells, percent(row["accuracy"])])
    head = "context rank at initialisation | trained | context share, trained | logit rank at initialisation | trained"
    return table(f"| | {head} | recall, answers right |", rows)


def marker() -> str:
    found = reports()["rank"]["summary"]["marker"]
    rows = []
    for group, same in grouped(found, lambda row: (row["variant"], row["width"])).items():
        relative = same[0]["training_flops"] / found[0]["training_flops"]
        right = [percent(each["accuracy"]) for each in same]
        rows.append([*group, *right, f"{same[0]['parameters']:,}", times(relative)])
    return table("| answers right | width | 16 tokens | 64 tokens | parameters | training FLOPs |", rows)


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


def form_name(row: dict) -> str:
    """ "Eq. 12, all layers" of a language model; of recall, which has one layer, "recall, Eq. 12"."""
    if row["task"] == "recall":
        return f"recall, {row['form']}"
    return row["form"] + {0: "", 1: ", first layer"}.get(row["nested"], ", all layers")


def forms() -> str:
    found = {name: row for name, row in summaries()["forms"].items() if row["task"] == "language"}
    rows = [
        [name, figure(row["bits_per_byte"]), f"{row['learning_rate']:g}", f"{row['parameters']:,}", row["steps"]]
        for name, row in best_first(found)
    ]
    return table("| model | held-out bits per byte, equal compute | rate | parameters | steps |", rows)


def recalled_forms() -> str:
    rows = [
        [row["form"], *(percent(row["accuracy"][size]) for size in ("8", "32")), f"{row['learning_rate']:g}"]
        for row in summaries()["forms"].values()
        if row["task"] == "recall"
    ]
    return table("| answers right | 8 pairs | 32 pairs | rate |", rows)


def windows() -> str:
    rows = [
        [name, figure(row["bits_per_byte"]), f"{row['learning_rate']:g}", row["steps"]]
        for name, row in summaries()["window"]["language"].items()
    ]
    return table("| inner levels see | held-out bits per byte, equal compute | rate | steps |", rows)


def answers_by_window() -> str:
    found = summaries()["window"]
    columns = [("recall", "8"), ("recall", "32"), ("induction", "8"), ("induction", "64")]
    rows = [
        [name, *(percent(found[task][name]["accuracy"][size]) for task, size in columns)] for name in found["recall"]
    ]
    return table("| answers right | recall, 8 pairs | 32 pairs | induction, 8 tokens | 64 tokens |", rows)


def hops_by_window() -> str:
    found = summaries()["window"]["hops"]
    rows = [[name, *(percent(row["accuracy"][hops]) for hops in ("1", "2", "3"))] for name, row in found.items()]
    return table("| answers right | 1 hop | 2 hops | 3 hops |", rows)


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


def chains(task: str) -> str:
    rows = [
        [name, percent(row["accuracy"]), f"{row['learning_rate']:g}", row["steps"]]
        for name, row in summaries()["chains"][task].items()
    ]
    return table("| equal compute at each depth | answers right | rate | steps |", rows)


def encoder(task: str) -> str:
    show, name = (percent, "accuracy") if task == "facts" else (figure, "bits_per_token")
    rows = [
        [row, show(found[name]), f"{found['learning_rate']:g}", found["steps"], f"{found['parameters']:,}"]
        for row, found in summaries()["encoder"][task].items()
    ]
    measured = "answers right" if task == "facts" else "held-out bits per masked token"
    return table(f"| equal compute | {measured} | rate | steps | parameters |", rows)


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


def evidence() -> str:
    """The table that model cards quote."""
    recalled, scaled = summaries()["forms"], summaries()["scale"]
    short, longer, code = (
        scaled[f"{name} x"] for name in ("Shakespeare, small, 1", "Shakespeare, small, 3", "SymPy, small, 1")
    )
    right = [percent(recalled[f"recall, {each}"]["accuracy"]["32"]) for each in ("Eq. 12", "standard")]
    rows = [["associative recall over 32 pairs, one layer from scratch, equal parameters: answers right", *right]]
    size = figure(short["standard"]["parameters"] / 1e6, 1)
    model = f"language model of {size} million parameters from scratch, equal compute: bits per byte"
    for title, stage, nested in (
        (f"{model} of Shakespeare, first layer nested, inner window of 16", short, "first layer, window 16"),
        ("the same, three times as long", longer, "first layer, window 16"),
        (f"{model} of program code, first layer nested, inner window of 16", code, "first layer, window 16"),
        (f"{model} of Shakespeare, every layer nested", short, "all layers"),
    ):
        rows.append([title, *(figure(stage[each]["bits_per_byte"]) for each in (nested, "standard"))])
    for corpus, methods in summaries()["retrofit"]["results"].items():
        title = f"SmolLM2-135M-Instruct trained further on {corpus}, everything, equal compute: loss, nats per token"
        models = ("order 2, everything", "source, everything, longer")
        rows.append([title, *(figure(methods[each]["loss"]) for each in models)])
    return table("| measured | nested | standard |", rows)


BLOCKS = {
    "state": state,
    "recall": partial(answers, "recall", "recall", {"8": "8 pairs", "32": "32 pairs"}),
    "induction": partial(answers, "recall", "induction", {"16": "16 tokens", "64": "64 tokens"}),
    "hops": partial(answers, "hops", "models", {"1": "1 hop", "2": "2 hops", "3": "3 hops"}),
    "ranks": ranks,
    "marker": marker,
    **{stage: partial(language, stage) for stage in ("ablation", "finalists", "longer", "larger")},
    "map": nestings,
    "forms": forms,
    "recall of the forms": recalled_forms,
    "windows": windows,
    "answers by window": answers_by_window,
    "hops by window": hops_by_window,
    "scale": scale,
    "repeated pairs": repeated_pairs,
    **{task: partial(chains, task) for task in ("assignments", "moves", "two hops")},
    "masked facts": partial(encoder, "facts"),
    "masked text": partial(encoder, "text"),
    "gates": gates,
    **{stage: partial(rates, stage) for stage in (f"{size}learning rates" for size in ("", "longer, ", "larger, "))},
    "Shakespeare": partial(retrofit, "Shakespeare"),
    "reasoning": partial(retrofit, "reasoning"),
    "comparisons": comparisons,
}
