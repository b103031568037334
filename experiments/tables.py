"""The tables of RESULTS.md, docs/results/*.md and the model card, from the committed results."""

from functools import partial

from common.report import table

from . import loss_tables
from .quoted import TITLES, figure, percent, reports, summaries, times
from .runs import grouped


def costs(row: dict) -> list[str]:
    return [f"{row['learning_rate']:g}", f"{row['parameters']:,}", times(row["relative_compute"])]


def state() -> str:
    rows = []
    for name, title in TITLES.items():
        report = reports()[name]
        done = "" if report["finished"] else "**unfinished**, "
        made = f"{done}{len(report['runs'])} runs, {report['date'][:10]}, {report['device']['name']}"
        link = f"[{title}](docs/results/{name}.md)"
        rows.append([link, made, f"{report['cpu_hours']:.1f}", report["budget_cpu_hours"]])
    rows.append(["[The paper's own runs](experiments/paper/README.md)", "**not run**, tried out at toy size", "", ""])
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
    return table("| answers right | width | 16 tokens | 64 tokens | parameters | training FLOPs, 16 tokens |", rows)


def recalled_forms() -> str:
    rows = [
        [row["form"], *(percent(row["accuracy"][size]) for size in ("8", "32")), f"{row['learning_rate']:g}"]
        for row in summaries()["forms"].values()
        if row["task"] == "recall"
    ]
    return table("| answers right | 8 pairs | 32 pairs | rate |", rows)


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


def hops_by_rate() -> str:
    rates = ("0.002", "0.004")
    rows = [
        [name, *(percent(row["at_rates"][rate][hops]) for hops in ("2", "3") for rate in rates)]
        for name, row in summaries()["hops"]["models"].items()
        if row["layers"] > 1
    ]
    columns = " | ".join(f"{hops} hops, rate {rate}" for hops in (2, 3) for rate in rates)
    return table(f"| answers right | {columns} |", rows)


def chains(task: str) -> str:
    rows = [
        [name, percent(row["accuracy"]), f"{row['learning_rate']:g}", row["steps"]]
        for name, row in summaries()["chains"][task].items()
    ]
    return table("| equal compute at each depth | answers right | rate | steps |", rows)


def look_ups() -> str:
    found = summaries()["chains"]["assignments"]
    rows = [[name, *map(percent, row["by_look_ups"].values())] for name, row in found.items()]
    columns = list(next(iter(found.values()))["by_look_ups"])
    return table(f"| answers right, by look-ups | {' | '.join(columns)} |", rows)


def encoder(task: str) -> str:
    show, name = (percent, "accuracy") if task == "facts" else (figure, "bits_per_token")
    rows = [
        [row, show(found[name]), f"{found['learning_rate']:g}", found["steps"], f"{found['parameters']:,}"]
        for row, found in summaries()["encoder"][task].items()
    ]
    measured = "answers right" if task == "facts" else "held-out bits per masked token"
    return table(f"| equal compute | {measured} | rate | steps | parameters |", rows)


def evidence() -> str:
    """The table that model cards quote."""
    recalled = summaries()["recall"]["recall"]
    right = [percent(recalled[f"1 layer, {each}"]["accuracy"]["32"]) for each in ("order 2", "standard")]
    compute = times(recalled["1 layer, order 2"]["relative_compute"])
    rows = [[f"associative recall over 32 pairs, one layer, {compute} the compute: answers right", *right, ""]]
    models = ("first layer, window 16", "standard", "standard, first layer sees 16")
    stages = [(*name.removesuffix(" x").split(", "), stage) for name, stage in summaries()["scale"].items()]
    for corpus, _, longer, stage in sorted(stages, key=lambda each: (each[0], each[3]["standard"]["parameters"])):
        title = "program code" if corpus == "SymPy" else corpus
        title += f", {stage['standard']['parameters'] / 1e6:.1f} million parameters"
        title += "" if longer == "1" else f", {longer} times the training"
        rows.append([title, *(figure(stage[each]["bits_per_byte"]) if each in stage else "" for each in models)])
        if "all layers" in stage:
            row = [figure(stage[each]["bits_per_byte"]) for each in ("all layers", *models[1:])]
            rows.append([f"{title}, every layer nested, no window", *row])
    trained = "SmolLM2-135M-Instruct trained further on {}: loss, nats per token"
    retrofit, older = summaries()["retrofit_forms"], summaries()["retrofit"]["results"]
    for title, found, models in (
        (trained.format("Shakespeare"), retrofit["short"], ("Eq. 12, all layers", "source")),
        ("the same, four times as long", retrofit["long"], ("Eq. 12, all layers", "source")),
        (
            trained.format("reasoning, with W_O between the levels"),
            older["reasoning"],
            ("order 2, everything", "source, everything, longer"),
        ),
    ):
        rows.append([title, *(figure(found[each]["loss"]) for each in models), ""])
    return table("| measured | nested | standard | standard, first layer sees 16 tokens |", rows)


BLOCKS = {
    "state": state,
    "recall": partial(answers, "recall", "recall", {"8": "8 pairs", "32": "32 pairs"}),
    "induction": partial(answers, "recall", "induction", {"16": "16 tokens", "64": "64 tokens"}),
    "hops": partial(answers, "hops", "models", {"1": "1 hop", "2": "2 hops", "3": "3 hops"}),
    "ranks": ranks,
    "marker": marker,
    **{stage: partial(loss_tables.language, stage) for stage in ("ablation", "finalists", "longer", "larger")},
    "map": loss_tables.nestings,
    "forms": loss_tables.forms,
    "recall of the forms": recalled_forms,
    "windows": loss_tables.windows,
    "answers by window": answers_by_window,
    "hops by window": hops_by_window,
    "hops by rate": hops_by_rate,
    "scale": loss_tables.scale,
    "repeated pairs": loss_tables.repeated_pairs,
    "arms": loss_tables.arms,
    **{task: partial(chains, task) for task in ("assignments", "moves", "two hops")},
    "assignments by look-ups": look_ups,
    "masked facts": partial(encoder, "facts"),
    "masked text": partial(encoder, "text"),
    "gates": loss_tables.gates,
    **{
        stage: partial(loss_tables.rates, stage)
        for stage in (f"{size}learning rates" for size in ("", "longer, ", "larger, "))
    },
    "Shakespeare": partial(loss_tables.retrofit, "Shakespeare"),
    "reasoning": partial(loss_tables.retrofit, "reasoning"),
    "comparisons": loss_tables.comparisons,
    **{f"retrofit, {length}": partial(loss_tables.retrofit_forms, length) for length in ("short", "long")},
}
