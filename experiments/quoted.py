"""The committed results, and how figures of them are printed."""

import json
from functools import cache

from .runs import RESULTS

TITLES = {
    "scale": "Does the gain last?",
    "recall": "One layer, several hops",
    "hops": "Pointer chasing",
    "rank": "What a logit can depend on",
    "language": "Language modelling, with W_O",
    "forms": "Which form is the default",
    "window": "How far inner levels have to see",
    "arms": "The paper's Table 2, in small",
    "chains": "Where nesting should pay",
    "encoder": "In an encoder",
    "retrofit": "Retrofit of SmolLM2-135M, with W_O",
    "retrofit_forms": "Retrofit of SmolLM2-135M, in Eq. 12 and as in the paper",
}


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


def best_first(models: dict[str, dict]) -> list[tuple[str, dict]]:
    return sorted(models.items(), key=lambda item: item[1]["bits_per_byte"]["mean"])


def form_name(row: dict) -> str:
    """ "Eq. 12, all layers" of a language model; of recall, which has one layer, "recall, Eq. 12"."""
    if row["task"] == "recall":
        return f"recall, {row['form']}"
    return row["form"] + {0: "", 1: ", first layer"}.get(row["nested"], ", all layers")
