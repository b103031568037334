"""Every figure in RESULTS.md, docs/results/*.md and README.md is one of the committed results."""

import json
import re

import pytest

from common.report import GENERATED, fill
from experiments import page, quoted, tables
from experiments.page import FIGURE, NO_PROSE, ORIGINS, wrong_figures

README = page.REPOSITORY / "README.md"
each_page = pytest.mark.parametrize("path", page.PAGES, ids=lambda path: path.name)


@each_page
def test_the_tables_are_what_the_results_say(path):
    text = path.read_text(encoding="utf-8")
    assert GENERATED.search(text) and fill(text, tables.BLOCKS) == text


def test_the_table_of_the_model_card_is_what_the_results_say():
    assert page.EVIDENCE.read_text(encoding="utf-8") == tables.evidence() + "\n"


def test_every_table_stands_on_a_page():
    named = [name for path in page.PAGES for _, name, _ in GENERATED.findall(path.read_text(encoding="utf-8"))]
    assert sorted(named) == sorted(tables.BLOCKS)


@each_page
def test_every_figure_of_the_prose_has_an_origin_and_is_right(path):
    wrong, _, without = wrong_figures(path.read_text(encoding="utf-8"), page.summary(path))
    assert wrong == without == []


@each_page
def test_a_changed_digit_is_noticed(path):
    """Each digit of each figure, one after the other."""
    text = NO_PROSE.sub("", path.read_text(encoding="utf-8"))
    for paragraph in re.split(r"\n\s*\n", text):
        *pieces, _ = ORIGINS.split(paragraph)
        for prose, named in zip(pieces[::2], pieces[1::2], strict=True):
            for found, origin in zip(FIGURE.finditer(prose), named.split(";"), strict=True):
                for place in range(*found.span()):
                    if origin.strip() == "setting" or not prose[place].isdigit():
                        continue
                    changed = f"{prose[:place]}{(int(prose[place]) + 1) % 10}{prose[place + 1 :]}"
                    wrong, *_ = wrong_figures(f"{changed}<!-- figures: {named} -->", page.summary(path))
                    assert wrong, f"{found[0]} became {changed[slice(*found.span())]}"


def test_the_readme_quotes_the_results():
    wrong, count, _ = wrong_figures(README.read_text(encoding="utf-8"), quoted.summaries())
    assert wrong == []
    assert count > 0, "after a paragraph that quotes results: <!-- figures: ... -->, see experiments/page.py"


def test_figures_without_an_origin_are_found():
    spread = {"mean": 1.5, "min": 1.25, "max": 1.75, "seeds": 3}
    results = {"a": {"b, c": spread, "share": 0.25, "rate": 0.003, "size": 1234}}
    text = "1.50 (1.25 to 1.75), 1.5, 25 %, 3e-3, 1,234, 0.03<!-- figures: a/b, c; a/b, c;\n a/share; a/rate; a/size;"
    assert wrong_figures(f"{text} setting -->", results) == ([], 6, [])
    assert wrong_figures("1.50\n(1.25\nto 1.75), 25\n%<!-- figures: a/b, c; a/share -->", results) == ([], 2, [])
    assert wrong_figures(f"{text} setting --> but 7.5", results) == ([], 6, ["7.5"])
    assert wrong_figures("In SmolLM2-135M, `0.5`, [half](1.5) of Qwen2.5-1.5B, 64 tokens.", results) == ([], 0, [])
    (wrong,) = wrong_figures("1.6<!-- figures: a/b, c -->", results)[0]
    assert wrong == "1.6 should be 1.5, a/b, c"
    assert wrong_figures("25%<!-- figures: a/share -->", results)[0] == ["25% should be 25 %, a/share"]
    (wrong,) = wrong_figures("1.5 and 1.5<!-- figures: a/b, c -->", results)[0]
    assert wrong == "2 figures, 1.5, 1.5, but 1 origins, 'a/b, c'"
    with pytest.raises(SystemExit, match="no 'd' in the results"):
        wrong_figures("1.5<!-- figures: a/d -->", results)


def test_percent_and_figure():
    assert quoted.percent({"mean": 0.5, "min": 0.25, "max": 0.75, "seeds": 3}) == "50 % (25 to 75)"
    assert quoted.percent({"mean": 0.999, "min": 0.998, "max": 1.0, "seeds": 3}) == "100 %"
    assert quoted.percent(0.25) == "25 %"
    assert quoted.figure({"mean": 1.5, "min": 1.25, "max": 1.75, "seeds": 3}, 2) == "1.50 (1.25 to 1.75)"
    assert quoted.figure(1.23456) == "1.235"


# What the pages say of the results as a whole.


def spreads(summary):
    """Every {"mean", "min", "max", "seeds"} in it."""
    if isinstance(summary, list):
        summary = dict(enumerate(summary))
    if not isinstance(summary, dict):
        return []
    return [summary] if "seeds" in summary else [each for value in summary.values() for each in spreads(value)]


@pytest.mark.parametrize("name", ["recall", "hops", "rank", "language"])
def test_the_committed_results_have_three_seeds_of_every_model(name):
    report = json.loads((quoted.RESULTS / f"{name}.json").read_text())
    one_seed = {"map, equal compute", "map, equal steps"}  # and the page says so
    found = spreads({stage: value for stage, value in report["summary"].items() if stage not in one_seed})
    assert found and all(each["seeds"] == 3 for each in found)


def test_the_rates_of_gates_that_the_pages_state():
    text, tasks = (quoted.summaries()["retrofit"]["results"][corpus] for corpus in ("Shakespeare", "reasoning"))
    best = {text[method]["scalar_learning_rate"] for method in ("order 2, everything", "order 2, gates")}
    assert best == {3e-3} and tasks["order 2, gates"]["scalar_learning_rate"] == 3e-2
