"""Every experiment runs at toy size through its command line; what RESULTS.md says is what the committed files say."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nexus_transformers
from experiments import hops, language, page, rank, recall
from experiments.models import build, parameters, training_flops

ROOT = Path(nexus_transformers.__file__).parent
COMMITTED = sorted(page.RESULTS.glob("*.json"))


def run(*arguments):
    command = [sys.executable, "-m", "experiments", *arguments]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recall", "hops", "rank", "language"])
def test_an_experiment_at_toy_size(name, tmp_path):
    output = run(name, "--quick", "--workers", "2", "--out", str(tmp_path))
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["experiment"] == name and report["summary"] and report["cpu_hours"] < 0.1
    assert all(each["result"]["parameters"] > 0 and each["result"]["training_flops"] > 0 for each in report["runs"])
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    before = (tmp_path / f"{name}.json").read_bytes()
    again = run(name, "--quick", "--workers", "2", "--out", str(tmp_path))
    assert ", 0 to make" not in output.split("\n")[0] and ", 0 to make" in again.split("\n")[0]
    assert (tmp_path / f"{name}.json").read_bytes() == before  # nothing new, not even a date


def test_an_unknown_experiment_is_named():
    command = [sys.executable, "-m", "experiments", "nonsense"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2
    assert "no experiment 'nonsense'; there are recall, hops" in process.stderr


@pytest.mark.parametrize(("path", "text"), [(page.PAGE, page.page), (page.EVIDENCE, page.evidence)])
def test_the_pages_are_made_of_the_committed_results(path, text):
    assert path.read_text(encoding="utf-8") == text()


def test_the_readme_quotes_the_committed_results():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    recall_rows = json.loads((page.RESULTS / "recall.json").read_text())["summary"]["recall"]
    language = json.loads((page.RESULTS / "language.json").read_text())["summary"]
    nested, standard = (
        page.percent(recall_rows[f"1 layer, {variant}"]["accuracy"]["32"]) for variant in ("order 2", "standard")
    )
    models = ("order 2, first layer", "standard", "order 2")
    (first, plain, _), (longest, rival, every) = (
        [f"{language[stage][variant]['bits_per_byte']['mean']:.3f}" for variant in models]
        for stage in ("ablation", "longer")
    )
    assert f"({nested} of the answers against {standard})" in readme
    assert f"({first} bits per byte against {plain})" in readme
    assert f"tried {longest} against {rival}" in readme and f"is behind ({every})" in readme
    retrofitted = json.loads((page.RESULTS / "retrofit.json").read_text())["summary"]["results"]
    text, tasks = retrofitted["Shakespeare"], retrofitted["reasoning"]
    nested, source = (
        f"{text[method]['loss']['mean']:.3f}" for method in ("order 2, everything", "source, everything, longer")
    )
    assert f"a loss of {nested} on held-out Shakespeare, the source with as much compute to {source}" in readme
    best = {method: text[method]["scalar_learning_rate"] for method in ("order 2, everything", "order 2, gates")}
    assert set(best.values()) == {3e-3} and tasks["order 2, gates"]["scalar_learning_rate"] == 3e-2
    assert "for gates alone 3e-3 on text, 3e-2 on short tasks" in readme


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_keep_to_their_budget(path):
    report = json.loads(path.read_text())
    assert report["budget_cpu_hours"] == importlib.import_module(f"experiments.{path.stem}").BUDGET
    assert report["cpu_hours"] <= 1.2 * report["budget_cpu_hours"]
    assert report["cpu_hours"] == pytest.approx(sum(run["cpu_seconds"] for run in report["runs"]) / 3600, abs=1e-3)


def spreads(summary):
    """Every {"mean", "min", "max", "seeds"} in it."""
    if isinstance(summary, list):
        summary = dict(enumerate(summary))
    if not isinstance(summary, dict):
        return []
    return [summary] if "seeds" in summary else [each for value in summary.values() for each in spreads(value)]


@pytest.mark.parametrize("name", ["recall", "hops", "rank", "language"])
def test_the_committed_results_have_three_seeds_of_every_model(name):
    report = json.loads((page.RESULTS / f"{name}.json").read_text())
    one_seed = {"map, equal compute", "map, equal steps"}  # and RESULTS.md says so
    found = spreads({stage: value for stage, value in report["summary"].items() if stage not in one_seed})
    assert found and all(each["seeds"] == 3 for each in found)


def test_what_was_retrofitted_with_fewer_seeds_is_marked():
    summary = json.loads((page.RESULTS / "retrofit.json").read_text())["summary"]
    text = page.PAGE.read_text(encoding="utf-8")
    for methods in summary["results"].values():
        for method, figures in methods.items():
            marked = {1: " (one seed)", 2: " (two seeds)", 3: ""}[figures["loss"]["seeds"]]
            assert f"| {method}{marked} | {page.figure(figures['loss'])} |" in text


def test_percent_and_figure():
    assert page.percent({"mean": 0.5, "min": 0.25, "max": 0.75, "seeds": 3}) == "50 % (25 to 75)"
    assert page.percent({"mean": 0.999, "min": 0.998, "max": 1.0, "seeds": 3}) == "100 %"
    assert page.percent(0.25) == "25 %"
    assert page.figure({"mean": 1.5, "min": 1.25, "max": 1.75, "seeds": 3}, 2) == "1.50 (1.25 to 1.75)"
    assert page.figure(1.23456) == "1.235"


def test_a_page_without_results_says_so(tmp_path):
    text = page.page(tmp_path)
    assert text.count("**not run yet**") == 5
    assert "%" not in text  # no figure
    assert page.evidence(tmp_path).count("not measured") == 1 and "%" not in page.evidence(tmp_path)


def test_a_page_says_what_is_unfinished(tmp_path):
    report = json.loads((page.RESULTS / "recall.json").read_text()) | {"finished": False}
    (tmp_path / "recall.json").write_text(json.dumps(report))
    text = page.page(tmp_path)
    assert f"**unfinished**, {len(report['runs'])} runs" in text
    assert "## 1. One layer" not in text


# rank.py


def test_logits_are_those_of_the_attention():
    model = build("order 2", 1, **rank.architecture(32))
    ids = torch.randint(rank.SYMBOLS, (2, 9))
    model.set_attn_implementation("eager")
    attention = model(input_ids=ids, output_attentions=True, use_cache=False).attentions[-1]
    causal = torch.full((9, 9), float("-inf")).triu(1)
    torch.testing.assert_close((rank.logits(model, ids) + causal).softmax(-1), attention)


def test_only_nested_logits_depend_on_the_tokens_around():
    """What the experiment is about, at initialisation; the standard layer is the negative control."""
    figures = {}
    for variant in ("standard", "order 2"):
        torch.manual_seed(0)
        figures[variant] = rank.measure(build(variant, 1, **rank.architecture(64)), torch.Generator().manual_seed(0))
    assert figures["standard"]["context_rank"] == 0
    assert figures["order 2"]["context_rank"] > 10
    assert figures["standard"]["context_share"] < 1e-3 < figures["order 2"]["context_share"]
    assert figures["standard"]["logit_rank"] == figures["order 2"]["logit_rank"] == 16  # head_dim bounds both


def test_numerical_rank():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 20, 4, generator=generator) @ torch.randn(3, 4, 30, generator=generator)
    assert rank.numerical_rank(matrix).tolist() == [4, 4, 4]
    assert rank.numerical_rank(matrix, scale=1e9).tolist() == [0, 0, 0]


# language.py


def test_equal_compute_steps():
    standard = language.settings("small", "standard", 1e-3)
    nested = language.settings("small", "order 2", 1e-3, compute=True)
    longer = language.settings("small", "order 2", 1e-3, compute=True, longer=5)
    assert standard["steps"] == 400 and language.settings("small", "order 2", 1e-3)["steps"] == 400
    cost = {name: language.flops("small", name) for name in ("standard", "order 2")}
    assert nested["steps"] * cost["order 2"] == pytest.approx(400 * cost["standard"], rel=2e-3)
    assert longer["steps"] == pytest.approx(5 * nested["steps"], abs=3)
    assert 1.1 < cost["order 2"] / cost["standard"] < 1.6


def test_the_map_of_nestings():
    nestings = language.nestings(3)
    assert [[2], [1, 2], [1, 1, 2], [2, 2], [2, 2, 2]] == nestings[:5]
    assert [[3], [1, 3], [1, 1, 3], [3, 3], [3, 3, 3]] == nestings[5:]


def test_every_variant_has_a_learning_rate():
    best = {(name,): {"learning_rate": i} for i, name in enumerate(language.TUNED)}
    rates = {name: language.rate_of(name, best) for name in language.TUNED + language.ABLATION}
    assert rates["looped"] == 3 and rates["order 3, first layer"] == 2 and rates["order 2, unshared"] == 1
    assert language.rate_of([1, 3], best) == 2 and language.rate_of([2, 2], best) == 1


# recall.py and hops.py


def test_rows_at_equal_parameters_and_the_rivals_at_more_compute():
    def cost(row):
        variant, layers, width, longer = recall.ROWS[row]
        return longer * training_flops(variant, layers, 1, 64, **recall.architecture(width))

    def size(row):
        variant, layers, width, _ = recall.ROWS[row]
        return parameters(build(variant, layers, **recall.architecture(width)))

    assert size("1 layer, order 2") == size("1 layer, standard") == size("1 layer, looped") < size("2 layers, standard")
    nested = cost("1 layer, order 2")
    assert cost("1 layer, standard") < nested
    assert nested < cost("1 layer, standard, 3 x longer") and nested < cost("1 layer, standard, wider")


def test_hops_are_asked_for_one_more_in_every_fifth():
    assert [hops.most_hops(share) for share in (0.0, 0.19, 0.2, 0.39, 0.4, 0.99)] == [1, 1, 2, 2, 3, 3]
