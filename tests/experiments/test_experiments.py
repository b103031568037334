"""The experiments run at toy size, and of the committed results nothing is left to make."""

import importlib
import json
import math
import shutil
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from experiments import arms, chains, encoder, gates, hops, language, page, quoted, rank, recall, scale
from experiments.models import build, parameters, training_flops
from experiments.runs import Experiment

NAMES = ["recall", "hops", "rank", "language"]


def run(name, out, quick):
    importlib.import_module(f"experiments.{name}").main(Namespace(out=out, workers=1, quick=quick))
    return json.loads((out / f"{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "scale", "arms", "chains"])
def test_an_experiment_at_toy_size(name, tmp_path, capsys):
    report = run(name, tmp_path, quick=True)
    assert report["experiment"] == name and report["summary"] and report["cpu_hours"] < 0.1
    assert all(each["result"]["parameters"] > 0 and each["result"]["training_flops"] > 0 for each in report["runs"])
    pictures = {picture.name: picture.stat().st_size for picture in tmp_path.glob("*.png")}
    assert f"{name}.png" in pictures and min(pictures.values()) > 10_000
    assert ", 0 to make" not in capsys.readouterr().out.split("\n")[0]


@pytest.mark.parametrize("name", [*NAMES, "forms", "window", "gates", "arms", "encoder", "scale", "chains"])
def test_nothing_is_left_to_make_of_the_committed_results(name, tmp_path, capsys, monkeypatch):
    """Their settings are those that the experiment wants, and the summary is what it makes of the runs."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(gates, "convert", lambda name, folder: None)  # needed by runs only
    monkeypatch.setattr(scale, "prepare", lambda corpus: None)
    monkeypatch.setattr(Experiment, "make", lambda self, stage, missing: pytest.fail(f"{stage} lacks {missing}"))
    committed = quoted.RESULTS / f"{name}.json"
    shutil.copy(committed, tmp_path)
    run(name, tmp_path, quick=False)
    stages = [line for line in capsys.readouterr().out.splitlines() if " runs, " in line]
    assert stages and all(stage.endswith(" 0 to make") for stage in stages)
    assert (tmp_path / committed.name).read_bytes() == committed.read_bytes()  # nothing new, not even a date


def test_an_unknown_experiment_is_named():
    command = [sys.executable, "-m", "experiments", "nonsense"]
    process = subprocess.run(command, cwd=page.REPOSITORY, capture_output=True, text=True)
    assert process.returncode == 2
    assert "no experiment 'nonsense'; there are scale, recall" in process.stderr


@pytest.mark.parametrize("name", quoted.TITLES)
def test_committed_results_keep_to_their_budget(name):
    report = quoted.reports()[name]
    assert report["budget_cpu_hours"] == importlib.import_module(f"experiments.{name}").BUDGET
    assert report["cpu_hours"] <= 1.2 * report["budget_cpu_hours"]
    assert report["cpu_hours"] == pytest.approx(sum(run["cpu_seconds"] for run in report["runs"]) / 3600, abs=1e-3)


# rank.py


def test_logits_are_those_of_the_attention():
    model = build("order 2", 1, **recall.architecture(32))
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
        figures[variant] = rank.measure(build(variant, 1, **recall.architecture(64)), torch.Generator().manual_seed(0))
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
    assert rates["looped"] == 3 and rates["order 3, first layer"] == 2 and rates["order 2, keys only"] == 1
    assert language.rate_of([1, 3], best) == 2 and language.rate_of([2, 2], best) == 1


# scale.py and arms.py


def test_equal_compute_in_scale_and_arms():
    for row in scale.NESTED:
        run = scale.settings("SymPy", "small", 3, row, 1e-3, 0)
        spent = run["steps"] * scale.training_flops("small", row)
        assert spent == pytest.approx(3 * scale.STEPS * scale.training_flops("small", "standard"), rel=2e-3)
    for row in arms.ROWS:
        run = arms.settings("small", row, arms.COMPUTE, 1e-3, 0)
        spent = run["steps"] * arms.training_flops("small", row)
        assert spent == pytest.approx(scale.STEPS * arms.training_flops("small", "Baseline"), rel=2e-3)
        assert arms.settings("small", row, arms.STEPS, 1e-3, 0)["steps"] == scale.STEPS


def test_arms_are_those_of_table_2():
    configs = {row: arms.config("small", row) for row in arms.ROWS}
    assert [config.layer_orders[0] for config in configs.values()] == [1, 2, 2, 2, 2, 3]
    assert not any(config.inner_scale or config.inner_output_projection for config in configs.values())
    costs = {row: arms.training_flops("small", row) for row in arms.ROWS}
    assert costs["Baseline"] < costs["Nexus-QK-Shared"] < costs["Nexus-Q"] < costs["Nexus-QK"] < costs["Nexus-QKV"]


def test_the_rate_is_that_of_the_smallest_mean_over_seeds():
    def record(rate, seed, bits):
        found = {part: {"bits_per_byte": bits if part == scale.TUNING else -rate} for part in scale.PARTS}
        return {"settings": {"learning_rate": rate, "seed": seed}, "result": found}

    records = [record(1, 0, 2.0), record(1, 1, 4.0), record(2, 0, 2.5), record(2, 1, 2.5)]
    assert scale.best_rate(records) == 2


def test_gains_are_seed_by_seed():
    def records(bits):
        results = ({scale.HELD_OUT: {"bits_per_byte": each}} for each in bits)
        return [{"settings": {"seed": seed}, "result": each} for seed, each in enumerate(results)]

    spread = scale.gain(records([3.0, 2.0, 1.0]), records([2.5, 1.5]), "bits_per_byte")
    assert spread == {"mean": 0.5, "min": 0.5, "max": 0.5, "seeds": 2}


def test_which_tokens_repeat_a_pair():
    ids = torch.tensor([[1, 2, 3, 1, 2, 2, 2, 3], [5, 5, 5, 5, 6, 5, 5, 6]])
    assert scale.repeats_a_pair(ids).int().tolist() == [[0, 0, 0, 1, 0, 1, 1], [0, 1, 1, 0, 0, 1, 1]]


def test_the_parts_of_a_loss_add_up_to_it(monkeypatch):
    torch.manual_seed(0)
    ids = torch.randint(4, (3, 32))
    monkeypatch.setattr(language, "blocks", lambda *_: [{"input_ids": row} for row in ids])
    monkeypatch.setattr(language, "bytes_per_token", lambda *_: 1.0)
    model = build("standard", 1, **recall.architecture(32)).eval()
    found = scale.losses(model, None, scale.HELD_OUT)
    expected = model(input_ids=ids, labels=ids).loss.item() / math.log(2)
    share = found["share_repeated"]
    assert 0 < share < 1
    assert share * found["bits_repeated"] + (1 - share) * found["bits_new"] == pytest.approx(expected, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("corpus", ["Shakespeare", "SymPy"])
def test_three_parts_of_a_corpus_share_no_file(corpus, monkeypatch):
    files = [page.REPOSITORY / str(place) for place in range(20)]
    monkeypatch.setattr(scale, "sympy", lambda: files)
    monkeypatch.setattr(scale, "shakespeare", lambda: (files[1::2], files[::2]))
    parts = scale.in_three(corpus)
    assert set(parts) == {scale.TRAIN, scale.TUNING, scale.HELD_OUT} and all(parts.values())
    assert sorted(file for part in parts.values() for file in part) == sorted(files)


# encoder.py and chains.py


def test_equal_compute_of_encoders_and_chains():
    for task, rows in encoder.ROWS.items():
        runs = [encoder.settings(task, row, 1e-3, 0, quick=False) for row in rows]
        spent = [run["steps"] * encoder.training_flops(task, run["row"]) for run in runs]
        assert spent == pytest.approx([spent[0]] * len(spent), rel=2e-3)
    for nested in chains.NESTED:
        run = chains.settings("moves", 2, nested, 1e-3, 0, quick=False)
        spent = run["steps"] * chains.training_flops("moves", 2, nested)
        assert spent == pytest.approx(chains.STEPS * chains.training_flops("moves", 2, "standard"), rel=2e-3)


def test_a_masked_text_asks_for_what_it_hides():
    rows = [{"input_ids": torch.arange(1000)} for _ in range(4)]
    batch = encoder.mask(rows, torch.Generator().manual_seed(0))
    hidden = batch["input_ids"] == language.VOCABULARY
    assert hidden.float().mean().item() == pytest.approx(encoder.MASKED, abs=0.03)
    assert batch["labels"][hidden].tolist() == torch.arange(1000).expand(4, -1)[hidden].tolist()
    assert (batch["labels"][~hidden] == encoder.IGNORED).all()


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
