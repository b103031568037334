"""The benchmark of speed on toy models: it runs, writes what it says, and does its sums. No time is ever asserted."""

import io
import json
import math
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from benchmarks import project, speed, speed_cases, speed_growth, speed_measure, speed_profile, speed_report
from benchmarks.speed_measure import Runner, Timing
from common import costs

FIGURES = {"seconds", "llama_seconds", "tokens_per_second", "ratio", "bound", "causal_bound", "ratio_to_bound"}


def runners(*seconds: float) -> list[Runner]:
    return [Runner(lambda pause=pause: time.sleep(pause)) for pause in seconds]


def test_a_ratio_is_a_run_over_the_mean_of_llama_s_two_around_it():
    timing = Timing()
    timing.add(1.0, 3.0, 2.0)
    timing.add(4.0, 5.0, 4.0)
    assert timing.ratios == [2.0, 1.25]
    assert timing.llama_seconds == [1.5, 4.0]


def test_quartiles():
    assert speed_measure.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert speed_measure.quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_every_rival_is_measured_in_every_round_between_two_runs_of_llama():
    order = []
    llama = Runner(lambda: order.append("llama"))
    rivals = {name: Runner(lambda name=name: order.append(name)) for name in ("a", "b")}
    timings = speed_measure.interleave(llama, rivals, "cpu", budget=0.0, min_seconds=0.0)
    assert {name: len(timing.ratios) for name, timing in timings.items()} == {"a": 3, "b": 3}
    rounds = "".join(name[0] for name in order[4:])  # after a warm-up of each and one of Llama more
    assert rounds == "lalbl" + "lblal" + "lalbl"


def test_short_tasks_are_repeated_and_long_ones_are_not():
    calls = {"llama": 0, "rival": 0}

    def runner(name, pause):
        def run():
            calls[name] += 1
            time.sleep(pause)

        return Runner(run)

    llama, rival = runner("llama", 0.01), runner("rival", 0.0)
    speed_measure.interleave(llama, {"rival": rival}, "cpu", budget=0.0, min_seconds=0.035)
    assert calls["rival"] in (1 + 3 * 2, 1 + 3 * 3, 1 + 3 * 4)  # by how long a sleep really is
    calls["rival"] = 0
    speed_measure.interleave(llama, {"rival": rival}, "cpu", budget=0.0, min_seconds=0.0)
    assert calls["rival"] == 1 + 3


def test_peak_memory_of_a_known_run():
    kept = torch.zeros(1000)

    def run():
        first = torch.zeros(250_000)  # 1 MB
        second = first + 1
        del first
        return second.sum() + kept.sum()

    assert 2_000_000 <= speed_measure.peak_bytes(Runner(run), "cpu") < 2_010_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_models_have_the_same_weights_and_with_closed_gates_or_order_1_the_same_logits(dtype):
    models = speed_cases.build(speed_cases.TOY, speed_cases.VARIANTS, dtype, "cpu")
    ids = torch.randint(1, 61, (2, 12))
    llama = models.pop(speed_cases.LLAMA)
    expected = llama(ids).logits
    for name, model in models.items():
        shared = {parameter.data_ptr() for parameter in llama.parameters()}
        own = [parameter for parameter in model.parameters() if parameter.data_ptr() not in shared]
        added = costs.parameters(model.config) - costs.parameters(llama.config)  # of inner attentions
        assert sum(parameter.numel() for parameter in own) == added + (4 if "gates" in name else 0), name
        assert (added > 0) is (name == "separate"), name
        alike = ("llama again", "order 1", "order 2, gates", "closed gates, skipped")
        assert torch.equal(model(ids).logits, expected) is (name in alike), name


def test_bounds_of_a_case_and_verdicts_on_its_rows():
    case = speed_cases.Case("smollm2-135m", "prefill", 1, 512)
    models = speed_cases.build(speed_cases.TOY, {"order 2": {"attention_order": 2}}, torch.float32, "cpu")
    row = speed_report.row(case, "order 2", models, Timing([2.0], [1.0], [2.0]), {}, {})
    assert row["ratio"] == 2.0 and row["seconds"] == 2.0 and row["tokens_per_second"] == 256
    assert 1 < row["causal_bound"] < row["bound"] < 2
    assert row["ratio_to_bound"] == 2.0 / row["bound"]

    def verdict(rows):
        return {target["target"]: target["verdict"] for target in speed_report.judge(rows)}

    assert verdict([row])["order 2, prefill"] == "missed"
    assert verdict([row])["order 2, training"] == "not measured"
    assert verdict([row | {"ratio_to_bound": 1.02}])["order 2, prefill"] == "reached"
    near = row | {"ratio_to_bound": 1.04, "ratio_quartiles": [row["bound"] * 1.01, row["bound"] * 1.08]}
    assert verdict([near])["order 2, prefill"] == "within the spread"
    assert verdict([row | {"device": "cuda", "dtype": "bfloat16"}])["order 2, prefill"] == "not measured"


@pytest.mark.slow
def test_the_quick_preset_runs_and_writes_its_results(tmp_path, capsys):
    options = ["--preset", "quick", "--toy", "--device", "cpu", "--seconds", "0.01", "--out", str(tmp_path)]
    report = speed.main(options)["quick"]
    assert json.loads((tmp_path / "speed_quick.json").read_text()) == report
    assert (tmp_path / "speed_quick.png").read_bytes().startswith(b"\x89PNG")
    assert report["device"]["name"] and report["versions"]["torch"] == torch.__version__
    assert {row["task"] for row in report["rows"]} == {"prefill", "decode", "train", "train checkpointed"}
    for row in report["rows"]:
        assert all(math.isfinite(row[figure]) and row[figure] > 0 for figure in FIGURES)
        low, high = row["ratio_quartiles"]
        assert low <= row["ratio"] <= high
        assert len(row["ratios"]) >= 3
        assert row["peak_ratio"] >= 1
        assert ("cache_ratio" in row) is (row["task"] == "decode")
        if row["task"] == "decode":
            assert row["cache_ratio"] == row["cache_bound"]
    by_variant = {row["variant"]: row["bound"] for row in report["rows"] if row["task"] == "prefill"}
    assert by_variant["llama again"] == by_variant["order 1"] == 1
    assert 1 < by_variant["first layer only"] < by_variant["order 2"] < by_variant["order 3"]
    output = capsys.readouterr().out
    assert "about" in output and "order 2, gates" in output and "Targets" in output
    console = Console(width=80, record=True, file=io.StringIO())
    speed_report.show(report, console)
    assert "…" not in console.export_text(), "it fits into eighty columns"


@pytest.mark.slow
def test_a_compiled_case_runs():
    case = speed_cases.Case("smollm2-135m", "decode", 1, 8, compiled=True, variants=("order 2",))
    shape = replace(speed_cases.TOY, num_layers=1)
    models = speed_cases.build(shape, {"order 2": {"attention_order": 2}}, torch.float32, "cpu")
    rows = speed.measure(case, models, "cpu", 0.1)
    assert [(row["variant"], row["compiled"]) for row in rows] == [("order 2", True)]


def test_the_list_of_cases_names_each_once(capsys):
    assert speed.main(["--list"]) == {}
    labels = capsys.readouterr().out.replace("\n", " ")
    assert "qwen2.5-1.5b stack, prefill 1 x 4096" in labels
    full = [case.label for preset in speed.FULL for case in speed_cases.cases(preset)]
    assert len(full) == len(set(full))
    assert all(label in labels for label in full)


@pytest.mark.slow
def test_growth_runs_and_writes_its_results(tmp_path):
    report = speed_growth.main(["--toy", "--device", "cpu", "--seconds", "0.01", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "speed_growth.json").read_text()) == report
    assert (tmp_path / "speed_growth.png").exists()
    assert {row["variable"] for row in report["rows"]} == set(speed_growth.TITLES)


def test_the_projection_is_written_with_and_without_measurements(tmp_path):
    page = tmp_path / "PROJECTION.md"
    project.main(["--measured", str(tmp_path / "none.json"), "--out", str(page)])
    assert "taken as 1.00" in page.read_text() and "Not measured" in page.read_text()

    measured = tmp_path / "speed.json"
    targets = [{"target": "order 2, prefill", "measured": 1.5}]
    measured.write_text(json.dumps({"targets": targets, "device": {"name": "X"}, "date": "2026-01-01T00"}))
    overhead = project.Overhead.read(measured)
    assert (overhead.prefill, overhead.train) == (1.5, 1.0)
    assert overhead.of("prefill", "order 2") == 1.5 and overhead.of("prefill", "standard") == 1.0


def test_what_is_projected_follows_from_the_counts():
    standard, nested = (project.config("7B", nesting) for nesting in ("standard", "order 2"))
    assert project.training(standard, "standard", 8192, 1, project.Overhead()) == "-"  # 18 bytes times 7.6e9
    hours = [
        float(project.training(model, name, 8192, 8, project.Overhead()).split(", ")[1].removesuffix(" h"))
        for model, name in ((standard, "standard"), (nested, "order 2"))
    ]
    operations = 4 / 3 * 6 * 7.6e9 * 1e9  # forward twice, weights only
    assert hours[0] == pytest.approx(operations / (8 * 989e12 * 0.4 * 0.9) / 3600, rel=0.15)
    assert 1.1 < hours[1] / hours[0] < 1.5
    fit = [int(project.serving(model, "", 8192, 8, project.Overhead())[0]) for model in (standard, nested)]
    assert fit[0] / fit[1] == pytest.approx(1.5, rel=0.01)


@pytest.mark.slow
def test_several_processes_are_one_report(tmp_path, monkeypatch):
    some = [
        speed_cases.Case("smollm2-135m", "prefill", 1, 8, variants=("llama again", "order 2"), judged=True),
        speed_cases.Case("smollm2-135m stack", "prefill", 1, 8, variants=("order 2",)),
    ]
    monkeypatch.setattr(speed, "cases", lambda preset: some)
    options = ["--preset", "quick", "--toy", "--device", "cpu", "--seconds", "0.01", "--processes", "2"]
    report = speed.main([*options, "--out", str(tmp_path)])["quick"]
    assert report["processes"] == 2
    assert json.loads((tmp_path / "speed_quick.json").read_text()) == report
    assert {row["shape"] for row in report["rows"]} == {"smollm2-135m", "smollm2-135m stack"}
    for row in report["rows"]:
        assert len(row["ratios"]) >= (4 if row["shape"] == "smollm2-135m" else 3)
        assert row["ratio"] == pytest.approx(speed_measure.quartiles(row["ratios"])[1], abs=1e-4)
        assert row["ratio_to_bound"] == pytest.approx(row["ratio"] / row["bound"])
    assert (tmp_path / "speed_quick.md").read_text() == speed_report.markdown(report)


def test_a_preset_without_targets_is_a_table_of_its_cases(tmp_path, monkeypatch):
    some = [
        speed_cases.Case("smollm2-135m", "decode", 1, 128, variants=("order 2",)),  # near to what a target is judged by
        speed_cases.Case("smollm2-135m stack", "prefill", 1, 8, "bfloat16", variants=("llama again", "order 2")),
    ]
    monkeypatch.setattr(speed, "cases", lambda preset: some)
    options = ["--preset", "wide", "--toy", "--device", "cpu", "--seconds", "0.01", "--out", str(tmp_path)]
    report = speed.main(options)["wide"]
    assert "targets" not in report
    _, _, decode, prefill = (tmp_path / "speed_wide.md").read_text().splitlines()
    row = report["rows"][0]
    assert decode.split(" | ")[3:5] == ["float32, eager", ""]
    assert f"{row['ratio']:.2f} / {row['bound']:.2f} = {row['ratio_to_bound']:.2f} |" in decode
    assert prefill.startswith("| smollm2-135m stack | prefill | 1 x 8 | bfloat16, eager | ")


def test_the_profile_adds_up(tmp_path):
    report = speed_profile.main(
        ["--toy", "--repeats", "2", "--task", "train", "--length", "16", "--out", str(tmp_path)]
    )
    assert json.loads((tmp_path / "speed_profile_train_order_2.json").read_text()) == report
    rows = {row["kind"]: row for row in report["rows"]}
    assert {"products", "attention"} <= rows.keys()
    for row in rows.values():
        assert row["excess"] == pytest.approx(row["nexus"] - row["predicted"])
    assert 1.05 < rows["products"]["predicted"] / rows["products"]["llama"] < 2
    assert rows["attention"]["predicted"] == pytest.approx(2 * rows["attention"]["llama"])  # one more call per layer
    assert rows["mul"]["predicted"] == rows["mul"]["llama"]


def test_kinds_of_operations():
    kinds = {"aten::addmm": "products", "aten::_scaled_dot_product_flash_attention_for_cpu_backward": "attention"}
    kinds |= {"aten::add_": "add", "aten::mul": "mul"}
    assert {name: speed_profile.kind(name) for name in kinds} == kinds
