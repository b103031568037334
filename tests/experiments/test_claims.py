"""What RESULTS.md says in words, "better" and "no better", is what the committed figures say."""

import json

import pytest

from experiments import page

PAGE = " ".join(page.PAGE.read_text(encoding="utf-8").split())
SUMMARIES = {path.stem: json.loads(path.read_text())["summary"] for path in page.RESULTS.glob("*.json")}
RECALL = {row: figures["accuracy"]["32"] for row, figures in SUMMARIES["recall"]["recall"].items()}
INDUCTION = {row: figures["accuracy"]["64"] for row, figures in SUMMARIES["recall"]["induction"].items()}
HOPS = {
    hops: {row: figures["accuracy"][hops] for row, figures in SUMMARIES["hops"]["models"].items()} for hops in "123"
}
RANKS = SUMMARIES["rank"]["ranks"]
MARKER = {(row["variant"], row["width"], row["length"]): row["accuracy"] for row in SUMMARIES["rank"]["marker"]}
LANGUAGE = {
    stage: {name: figures["bits_per_byte"] for name, figures in models.items()}
    for stage, models in SUMMARIES["language"].items()
    if not stage.endswith("learning rates")
}
ABLATION, FINALISTS, LONGER, LARGER = (LANGUAGE[stage] for stage in ("ablation", "finalists", "longer", "larger"))
MAP = LANGUAGE["map, equal compute"]
STANDARD = ABLATION["standard"]
EQUAL_COMPUTE = [
    (FINALISTS["2 1 1 1"], FINALISTS["standard"]),
    *((stage["order 2, first layer"], stage["standard"]) for stage in (LONGER, LARGER)),
]
RETROFIT = SUMMARIES["retrofit"]["results"]
# The loss of the first seed with each recipe for training everything in the nested model.
RECIPES = {
    corpus: {
        name: each["loss"]["values"][0] for name, each in methods.items() if name.startswith("order 2, everything")
    }
    for corpus, methods in RETROFIT.items()
}
BEST_RECIPE = {each["corpus"]: each["loss"] for each in SUMMARIES["retrofit"]["comparisons"][-2:]}
LATER = [" ".join("n" if layer == nested else "1" for layer in range(4)) for nested in (1, 2, 3)]


def above(one, other):
    """Every seed of the one is better than every seed of the other."""
    return one["min"] > other["max"]


def best_rate(stage, name):
    found = SUMMARIES["language"][f"{stage}learning rates"][name]
    return min(found, key=found.get)


def gates(corpus, method):
    """Those of the queries, then those of the keys, by layer."""
    scalars = RETROFIT[corpus][method]["scalars"]
    return scalars["query_gate_1"] + scalars["key_gate_1"]


def widest(method):
    """The layers that have the eight widest gates on Shakespeare."""
    values = gates("Shakespeare", method)
    return {place % 30 for place in sorted(range(60), key=lambda place: -values[place])[:8]}


CLAIMS = {
    # 1
    "Twice the width": all(
        above(RECALL["1 layer, order 2"], RECALL[rival])
        for rival in ("1 layer, standard, wider", "1 layer, standard, 3 x longer", "1 layer, looped")
    ),
    "The refined *keys* do it": above(RECALL["1 layer, order 2, keys only"], RECALL["1 layer, order 2, queries only"]),
    "it was not learned": RECALL["1 layer, order 2, unshared"]["max"] < 0.1,
    "does not do it": RECALL["1 layer, inside heads"]["max"] < 0.1,
    "two layers of order 2": RECALL["2 layers, order 2"]["mean"] < RECALL["1 layer, order 2"]["mean"],
    "best at the smallest rate that was tried": SUMMARIES["recall"]["recall"]["2 layers, standard, 3 x longer"][
        "learning_rate"
    ]
    == 2e-3,
    "best at the largest rate that was tried": SUMMARIES["recall"]["induction"]["1 layer, order 2"]["learning_rate"]
    == 1.6e-2,
    "learn the easier task, induction, no worse": INDUCTION["2 layers, standard"]["mean"]
    >= INDUCTION["1 layer, order 2"]["mean"],
    "each depending on the seed; one standard layer does not": all(
        above(INDUCTION[learns], INDUCTION[rival]) and INDUCTION[learns]["max"] - INDUCTION[learns]["min"] > 0.3
        for learns in ("1 layer, order 2", "2 layers, standard")
        for rival in ("1 layer, standard", "1 layer, standard, 3 x longer", "1 layer, looped")
    ),
    "projections of its own for the inner level are best in the mean": max(
        INDUCTION, key=lambda row: INDUCTION[row]["mean"]
    )
    == "1 layer, order 2, unshared",
    # 2
    "standard attention follows no hop": HOPS["1"]["1 layer, standard"]["max"] < 0.15,
    "follow one": all(HOPS["1"][f"1 layer, {each}"]["min"] > 0.99 for each in ("order 2", "order 3", "looped")),
    "one layer follows a hop as well": HOPS["1"]["1 layer, order 2, unshared"]["min"] > 0.99,
    "two layers of that had not learned the second": HOPS["2"]["2 layers, order 2, unshared"]["max"] < 0.3,
    "Order 3 is nowhere better than order 2": all(
        not above(figures[f"{layers}, order 3"], figures[f"{layers}, order 2"])
        for figures in HOPS.values()
        for layers in ("1 layer", "2 layers", "3 layers")
    ),
    "three layers of order 2": HOPS["2"]["3 layers, order 2"]["mean"] < HOPS["2"]["2 layers, order 2"]["mean"],
    "the best seed of any, of two layers of order 2": max((figures["max"], row) for row, figures in HOPS["3"].items())[
        1
    ]
    == "2 layers, order 2",
    # 3
    "A nested logit does depend on the text": RANKS["order 2"]["initial"]["context_rank"]["min"] == 135
    and RANKS["standard"]["trained"]["context_rank"]["max"] == 0,
    "eight times as wide": above(MARKER["order 2", 16, 64], MARKER["standard", 128, 64]),
    "and no further": MARKER["standard", 128, 16]["mean"] <= MARKER["standard", 64, 16]["mean"],
    "trained nested layers stay below the bound": RANKS["order 2"]["trained"]["logit_rank"]["max"] < 16,
    "in 64 had hardly learned it": MARKER["looped", 64, 64]["max"] < 0.5,
    # 4, in bits per byte: less is better
    "every seed of it is better": above(STANDARD, ABLATION["order 2, first layer"]),
    "leads in the mean and seeds overlap": all(
        nested["mean"] < standard["mean"] and nested["max"] > standard["min"] for nested, standard in EQUAL_COMPUTE
    ),
    "At equal compute every seed is behind the standard model": all(
        above(stage["order 2"], stage["standard"]) for stage in (FINALISTS, LONGER, LARGER)
    ),
    "does not help the standard model": all(
        above(FINALISTS[f"standard, {shape}"], FINALISTS["standard"]) for shape in ("deeper", "wider")
    ),
    "there the standard model's best rate is another one": best_rate("longer, ", "standard") == "0.004"
    and best_rate("", "standard") == "0.002",
    "Without our source scale it is better after as many short steps": above(
        ABLATION["order 2"], ABLATION["order 2, no source scale"]
    ),
    "but worse in long runs": above(LONGER["order 2, no source scale"], LONGER["order 2"]),
    "no nesting beats that of the first layer alone": min(MAP, key=lambda name: MAP[name]["mean"]) == "2 1 1 1",
    "nested alone, is behind the standard model": all(
        MAP[nesting.replace("n", order)]["mean"] > STANDARD["max"] for nesting in LATER for order in "23"
    ),
    "At equal steps most nested variants beat the standard model": sum(
        figures["mean"] < STANDARD["mean"] for name, figures in ABLATION.items() if name.startswith("order")
    )
    > sum(name.startswith("order") for name in ABLATION) / 2,
    "(looped) are worse": above(ABLATION["looped"], STANDARD),
    "Order 3 is not clearly better than order 2 anywhere": not any(
        above(LANGUAGE[stage][name.replace("3", "2")], LANGUAGE[stage][name])
        for stage in ("ablation", "finalists")
        for name in LANGUAGE[stage]
        if "3" in name
    ),
    "do not help beside shared ones": ABLATION["order 2, unshared"]["mean"] > ABLATION["order 2"]["mean"],
    "are worse than none": above(ABLATION["order 2, gates from 0"], ABLATION["order 2"]),
    "do better than both after as many steps": above(ABLATION["order 2"], ABLATION["order 2, queries only"]),
    "worse in the mean": ABLATION["order 2, keys only"]["mean"] > ABLATION["order 2"]["mean"],
    "alone both together do better in the mean than either": all(
        ABLATION["order 2, first layer"]["mean"] < ABLATION[f"order 2, first layer, {branch} only"]["mean"]
        for branch in ("queries", "keys")
    ),
    # 5: of losses less is better
    "plain fine-tuning of equal compute was as good or better in every comparison": all(
        each["loss"]["mean"] > 0
        for each in SUMMARIES["retrofit"]["comparisons"]
        if each["at"] == "equal compute" and each["nested"] != "order 2, gates"
    ),
    "less than 0.005 on Shakespeare and 0.03 on the tasks": all(
        abs(RECIPES[corpus][recipe] - RECIPES[corpus]["order 2, everything"]) < most
        for corpus, most in (("Shakespeare", 0.005), ("reasoning", 0.03))
        for recipe in RECIPES[corpus]
        if not recipe.endswith("gates alone for a third")
    ),
    "gates trained alone first cost more": all(
        losses["order 2, everything, gates alone for a third"] > losses["order 2, everything"] + 0.02
        for losses in RECIPES.values()
    ),
    "a draw with the source of equal compute": BEST_RECIPE["Shakespeare"]["min"] < 0 < BEST_RECIPE["Shakespeare"]["max"]
    and BEST_RECIPE["Shakespeare"]["mean"] < 0.001,
    "the seed that chose it misled": BEST_RECIPE["reasoning"]["min"] > 0,
    "Nesting a third of the layers takes a third of the extra compute": all(
        RETROFIT["Shakespeare"][f"order 2, everything{part}"]["training_flops"]
        == pytest.approx(RETROFIT["Shakespeare"]["source, everything"]["training_flops"] * factor, rel=0.01)
        for part, factor in (("", 1.2), (", first third nested", 1 + 0.2 / 3), (", last third nested", 1 + 0.2 / 3))
    ),
    "every seed of the nested model leads, by less than 0.003": all(
        -0.003 < difference < 0
        for each in SUMMARIES["retrofit"]["comparisons"]
        if each["corpus"] == "Shakespeare" and each["nested"] == "order 2, everything" and each["at"] == "equal steps"
        for difference in each["loss"]["values"]
    ),
    "Gates do more than as many temperatures, even at equal compute": all(
        above(methods["source, temperatures, longer"]["loss"], methods["order 2, gates"]["loss"])
        for methods in RETROFIT.values()
    ),
    "LoRA, at less compute": all(
        above(methods["order 2, gates"]["loss"], methods["source, LoRA"]["loss"])
        and methods["source, LoRA"]["training_flops"] < methods["order 2, gates"]["training_flops"]
        for methods in RETROFIT.values()
    ),
    "(15, 21 and 24 among them)": all(
        {15, 21, 24} <= widest(f"order 2, {trained}") for trained in ("everything", "LoRA + gates", "gates")
    ),
    "about as often to negative values": 0.4
    < sum(gate < 0 for gate in gates("reasoning", "order 2, gates")) / 60
    < 0.6,
    "is here not clearly different": not above(ABLATION["order 2"], ABLATION["inside heads"])
    and not above(ABLATION["inside heads"], ABLATION["order 2"]),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_is_said_is_so(claim):
    assert claim in PAGE, "the sentence has changed: change its claim here too"
    assert CLAIMS[claim]
