"""The retrofit experiment: its control, its data, its measures and its costs, and the whole of it at toy size."""

import shutil
from argparse import Namespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, LlamaForCausalLM

from common import costs
from experiments import retrofit, retrofit_forms
from experiments.retrofit import training
from experiments.retrofit.report import summarise
from experiments.retrofit.tasks import (
    IGNORED,
    OTHER,
    REASONING,
    TASKS,
    TEXT,
    collate,
    examples,
    measure,
    prepare,
    rows,
    task_row,
)
from experiments.retrofit.training import (
    add_temperatures,
    config_of,
    load,
    lora_flops,
    make_trainable,
    one_run,
    optimizer_and_schedule,
    scalars_by_layer,
    step_flops,
)

pytest.importorskip("peft")
reasoning_gym = pytest.importorskip("reasoning_gym")

LAYERS = 3  # of the toy
IDS = torch.arange(5, 45).view(2, 20)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return prepare("toy", tmp_path_factory.mktemp("toy"))


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def test_a_model_with_older_code_is_converted_again(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "toy")
    code, weights = (tmp_path / "toy" / "model" / name for name in ("attention_nexus.py", "model.safetensors"))
    made = weights.stat().st_mtime_ns
    prepare("toy", tmp_path / "toy")
    assert weights.stat().st_mtime_ns == made
    code.write_text(code.read_text() + "# older\n")
    prepare("toy", tmp_path / "toy")
    assert weights.stat().st_mtime_ns > made and code.read_bytes() == (toy / "model" / code.name).read_bytes()


def test_temperatures_at_1_change_nothing_and_learn(toy):
    plain, model = load(toy, 1), load(toy, 1)
    temperatures = add_temperatures(model)
    assert len(temperatures) == 2 * LAYERS, "as many as there are gates"
    assert torch.equal(logits(model), logits(plain))
    model(IDS, labels=IDS).loss.backward()
    assert all(each.grad.abs() > 1e-6 for each in temperatures.values())
    for temperature in temperatures.values():
        with torch.no_grad():
            temperature.fill_(1.5)
        assert (logits(model) - logits(plain)).abs().max() > 1e-3
        with torch.no_grad():
            temperature.fill_(1.0)


def test_with_closed_gates_the_loss_is_that_of_the_source_exactly(toy):
    source = LlamaForCausalLM.from_pretrained(toy / "source", dtype=torch.float32)
    expected = [measure(source, rows(toy, kind, "test"))[0] for kind in (TEXT, REASONING, OTHER)]
    for order in (1, 2, 3):
        model, _ = make_trainable(load(toy, order), "nothing")
        assert [measure(model, rows(toy, kind, "test"))[0] for kind in (TEXT, REASONING, OTHER)] == expected
    model, _ = make_trainable(load(toy, 2), "nothing", gate_start=0.3)
    assert abs(measure(model, rows(toy, TEXT, "test"))[0] - expected[0]) > 1e-3


def test_with_gates_that_stay_closed_training_is_that_of_the_source(toy):
    """Hence no run of LoRA, or of everything, with frozen gates."""
    models = [load(toy, order) for order in (1, 2)]
    for model in models:
        model(IDS, labels=IDS).loss.backward()
    source, nested = (dict(model.named_parameters()) for model in models)
    for name, parameter in source.items():
        torch.testing.assert_close(nested[name].grad, parameter.grad)
    assert all(gate.grad.abs() > 1e-6 for gate in models[1].gates().values()), "though the gates would open"


def test_only_the_answers_are_learned(toy):
    """The loss of a padded batch is the mean of what the unpadded rows give their answers' tokens."""
    batch = rows(toy, REASONING, "train")[::5][:4]
    assert len({len(row["ids"]) for row in batch}) > 1 and len({row["asked"] for row in batch}) > 1
    model = load(toy, 2).eval()
    with torch.no_grad():
        loss = model(**collate(batch)).loss
        surprises = []
        for row in batch:
            ids = torch.tensor([row["ids"]])
            scores = model(ids).logits[0].log_softmax(-1)
            surprises += [-scores[i - 1, row["ids"][i]] for i in range(len(row["ids"]) - row["asked"], len(row["ids"]))]
    torch.testing.assert_close(loss, torch.stack(surprises).mean())
    measured, _ = measure(model, batch, batch=3)
    assert measured == pytest.approx(loss.item(), rel=1e-5)
    labels = collate(batch)["labels"]
    assert (labels != IGNORED).sum(1).tolist() == [row["asked"] for row in batch]


def test_text_is_learned_whole(toy):
    batch = rows(toy, TEXT, "train")[:2]
    model, ids = load(toy, 1).eval(), torch.tensor([row["ids"] for row in batch])
    with torch.no_grad():
        torch.testing.assert_close(model(**collate(batch)).loss, model(ids, labels=ids).loss)


def test_exact_answers_are_those_that_generate_gives(toy):
    model, tokenizer = load(toy, 2), AutoTokenizer.from_pretrained(toy / "model")
    answered, expected = [], []
    for i, row in enumerate(rows(toy, REASONING, "test")):
        prompt = torch.tensor([row["ids"][: -row["asked"]]])
        tokens = 3 + i % 4
        exactly = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        full = model.generate(prompt, attention_mask=torch.ones_like(prompt), **exactly)[0].tolist()
        answered.append({"ids": full, "asked": tokens})
        wrong = list(full)
        wrong[-1 - i % tokens] = (wrong[-1 - i % tokens] + 1) % len(tokenizer)
        answered.append({"ids": wrong, "asked": tokens})
        expected += [True, False]
    assert len(expected) >= 6
    assert measure(model, answered)[1] == expected


def test_reasoning_answers_are_right_by_the_scorer_and_no_question_comes_twice(toy):
    tokenizer = AutoTokenizer.from_pretrained(toy / "model")
    for name, (dataset, fields) in TASKS.items():
        scorer = reasoning_gym.create_dataset(dataset, seed=0, size=5, **fields)
        for _, example in zip(range(5), examples(name, 0), strict=False):
            row = task_row(tokenizer, example)
            *answer, end = row["ids"][-row["asked"] :]
            assert end == tokenizer.eos_token_id
            assert scorer.score_answer(tokenizer.decode(answer), example) == 1.0
            assert scorer.score_answer(tokenizer.decode(answer[:1]) + "?", example) < 1.0
    prompts = [
        tuple(row["ids"][: -row["asked"]])
        for part in ("train", "validation", "test")
        for row in rows(toy, REASONING, part)
    ]
    assert len(set(prompts)) == len(prompts) == 3 * (8 + 2 + 3)
    texts = [tuple(row["ids"]) for part in ("train", "validation", "test") for row in rows(toy, TEXT, part)]
    texts += [tuple(row["ids"]) for row in rows(toy, OTHER, "test")]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    "method, count",
    {
        "order 2, gates": 2 * LAYERS,
        "source, temperatures": 2 * LAYERS,
        "source, LoRA": None,
        "order 2, LoRA + gates": None,
        "source, everything": None,
        "order 2, everything": None,
    }.items(),
)
def test_a_run_trains_what_it_says_and_nothing_else(toy, method, count, monkeypatch):
    kept = {}

    def keep(model, scalars, *arguments):
        kept["before"] = {name: each.detach().clone() for name, each in model.named_parameters()}
        curve = train(model, scalars, *arguments)
        kept["after"] = dict(model.named_parameters())
        return curve

    train = training.train
    monkeypatch.setattr(training, "train", keep)
    run = retrofit.settings(REASONING, method, 1e-2, 0, "toy")
    shares = []
    result = one_run(str(toy), run, shares.append)
    moved = {name for name, each in kept["after"].items() if not torch.equal(each, kept["before"][name])}
    learned = {name for name, each in kept["after"].items() if each.requires_grad}
    assert moved == learned
    assert result["trained_parameters"] == sum(kept["after"][name].numel() for name in learned)
    assert count in (None, result["trained_parameters"])
    assert any("lora_" in name for name in learned) == ("LoRA" in method)
    assert any("embed_tokens" in name for name in learned) == ("everything" in method)
    gates = {"query_gate_1", "key_gate_1"} if "order 2" in method else set()
    temperatures = {"query_temperature", "key_temperature"} if "temperatures" in method else set()
    assert result["scalars"].keys() == gates | temperatures
    start = 1.0 if temperatures else 0.0
    assert all(value != start for values in result["scalars"].values() for value in values)
    assert [step for step, _ in result["curve"]] == [1, 2, 3, 4] and shares[-1] == 1.0
    assert 0 <= result["mean_accuracy"] <= 1 and result["accuracy"].keys() == TASKS.keys()


@pytest.mark.parametrize("method", ["source, everything", "source, temperatures", "order 2, LoRA + gates"])
def test_what_was_trained_in_bfloat16_is_measured_in_float32(toy, method):
    run = retrofit.settings(TEXT, method, 1e-2, 0, "toy")
    model, scalars = make_trainable(load(toy, run["order"]), run["trained"])
    training.train(model, scalars, rows(toy, TEXT, "train"), run, lambda share: None)
    fresh, _ = make_trainable(load(toy, run["order"]), run["trained"])
    fresh.load_state_dict(model.state_dict())
    measured, expected = (measure(each, rows(toy, TEXT, "test"))[0] for each in (model, fresh))
    assert measured == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert measure(fresh, rows(toy, TEXT, "test"))[0] != expected, "the comparison would notice"


def test_gates_may_go_first_and_have_a_rate_of_their_own(toy):
    run = retrofit.settings(TEXT, "order 2, everything", 1e-4, 0, "toy") | {"steps": 30, "gates_alone": 1 / 3}
    model, scalars = make_trainable(load(toy, 2), "everything")
    adam, schedule = optimizer_and_schedule(model, scalars, run)
    weights, gates = adam.param_groups
    assert gates["params"] == scalars and len(scalars) == 2 * LAYERS
    assert len(weights["params"]) + len(scalars) == len(list(model.parameters()))
    course = []
    for _ in range(run["steps"]):
        course.append((weights["lr"], gates["lr"]))
        adam.step()
        schedule.step()
    assert all(weight == 0 for weight, _ in course[:10]) and all(weight > 0 for weight, _ in course[10:])
    assert all(0 < gate <= retrofit.GATE_RATE for _, gate in course)
    assert max(weight for weight, _ in course) > 0.9e-4 and max(gate for _, gate in course) > 0.9 * retrofit.GATE_RATE
    assert course[-1][0] < 0.05e-4


@pytest.mark.parametrize(
    ("trained", "order", "form"),
    [(*each, None) for each in retrofit.METHODS.values()]
    + [(trained, 2 if share else 1, form) for trained, share, form, _ in retrofit_forms.ROWS.values()],
    ids=[*retrofit.METHODS, *(f"Eq. 12: {row}" for row in retrofit_forms.ROWS)],
)
def test_the_cost_of_a_step_is_what_pytorch_counts(toy, trained, order, form):
    model = load(toy, order, form)
    model.set_attn_implementation("eager")  # the fused kernel of the CPU is not counted
    examples = [{"ids": list(range(5, 29)), "asked": 4}] * 2
    wanted = step_flops(model.config, trained, examples, batch=2)
    model, _ = make_trainable(model, trained)
    with FlopCounterMode(display=False) as counter:
        model.train()(**collate(examples)).loss.backward()
    # "eager" computes masked scores too, but keeps them for the backward pass
    config = config_of(toy, order, form)
    both = [costs.flops(config, 2, 24, logits=5, training=True, attention=kind)["total"] for kind in ("causal", "all")]
    difference = counter.get_total_flops() - (wanted + both[1] - both[0])
    if trained == "everything":
        assert difference == 0
    else:  # the gradients of the first layer's input, which nothing needs, are counted in
        assert -0.1 * wanted < difference <= 0


@pytest.mark.parametrize("form", [{}, {"inner_output_projection": True}], ids=["Eq. 12", "with W_O"])
def test_the_cost_of_adapters_is_what_pytorch_counts(toy, form):
    model, counted = load(toy, 2, form), []
    for trained in ("nothing", "LoRA"):
        model, _ = make_trainable(model, trained)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(IDS)
        counted.append(counter.get_total_flops())
    assert 3 * (counted[1] - counted[0]) == lora_flops(config_of(toy, 2, form), IDS.numel())


def test_layers_below_the_lowest_gate_cost_no_backward_pass(toy):
    examples = rows(toy, TEXT, "train")
    counted = [step_flops(config_of(toy, orders), "gates", examples, 2) for orders in ([2, 1, 1], [1, 2, 1], [1, 1, 2])]
    layer = counted[0] - counted[1]
    assert layer > 0 and counted[1] - counted[2] == layer


def test_the_rival_gets_the_steps_that_the_nested_model_costs(toy):
    nested = retrofit.settings(TEXT, "order 2, everything", 1e-4, 0, "toy") | {"steps": 1000}
    rival = retrofit.settings(TEXT, "source, everything", 1e-4, 0, "toy")
    longer = retrofit.longer(toy, rival, nested)
    assert longer["steps"] > 1000
    spent = [run["steps"] * retrofit.cost(toy, run) for run in (nested, longer)]
    assert spent[1] == pytest.approx(spent[0], rel=1e-3)
    assert longer | {"method": rival["method"], "steps": rival["steps"]} == rival


def test_recipes_change_one_thing_each(toy):
    run = retrofit.settings(TEXT, "order 2, everything", 1e-4, 0, "smollm2")
    changed = retrofit.recipes(run, 30)
    for recipe in changed:
        assert len({name for name in recipe if recipe[name] != run.get(name)}) == 2, "its name and the change"
    nested = [recipe["order"] for recipe in changed if isinstance(recipe["order"], list)]
    sums = [sum(orders) for orders in zip(*nested, strict=True)]
    assert sums == [6] + [5] * 29, "each layer is in one third, and the first once more"
    assert len({recipe["method"] for recipe in changed}) == len(changed)


def test_scalars_stand_at_their_layers(toy):
    model, _ = make_trainable(load(toy, [1, 3, 1]), "gates", gate_start=0.2)
    found = scalars_by_layer(model)
    assert found == {f"{kind}_gate_{level}": [None, 0.2, None] for level in (1, 2) for kind in ("query", "key")}


def record(method, seed, loss, *, rate=1e-4, steps=10, order=1, flops=100, corpus=TEXT):
    settings = {"corpus": corpus, "method": method, "seed": seed, "learning_rate": rate, "scalar_learning_rate": None}
    result = {"loss": loss, "validation_loss": loss, "other_loss": 2.0 + loss, "training_flops": flops, "scalars": {}}
    result |= {"trained_parameters": 1, "training_cpu_seconds": 1.0}
    return {"settings": settings | {"steps": steps, "order": order}, "result": result}


def test_the_summary_takes_the_tuned_runs_and_compares_seed_by_seed():
    nested, plain = "order 2, everything", "source, everything"
    before = [record("source", 0, 4.0, steps=0), record("order 2, gates closed", 0, 4.0, steps=0, order=2)]
    sweep = [record(plain, 0, 3.0), record(plain, 0, 2.5, rate=2e-4), record(nested, 0, 2.4, order=2, flops=130)]
    seeds = [record(plain, seed, 2.5 + seed / 10, rate=2e-4) for seed in (0, 1)]
    seeds += [record(nested, seed, 2.4 + seed / 5, order=2, flops=130) for seed in (1, 0)]
    longer = [record(f"{plain}, longer", seed, 2.3 + seed / 10, rate=2e-4, steps=13, flops=130) for seed in (0, 1)]
    summary = summarise({"before": before, "sweep": sweep, "seeds": seeds}, retrofit.RIVALS)
    result = summary["results"][TEXT][plain]
    assert (result["learning_rate"], result["settings_tried"], result["loss"]["seeds"]) == (2e-4, 2, 2)
    assert result["forgotten"]["values"] == pytest.approx([-1.5, -1.4])
    assert summary["before"][TEXT]["closed_gates_differ_by"] == 0.0
    (compared,) = summary["comparisons"]
    assert compared["loss"]["values"] == pytest.approx([-0.1, 0.0])
    summary = summarise({"before": before, "sweep": sweep, "seeds": seeds, "longer": longer}, retrofit.RIVALS)
    assert [each["at"] for each in summary["comparisons"]] == ["equal steps", "equal compute"]
    assert summary["comparisons"][1]["loss"]["values"] == pytest.approx([0.1, 0.2])
    recipes = [(TEXT, f"{nested}, first layer nested", f"{plain}, longer")]
    records = [record(recipes[0][1], seed, 2.2, order=2, flops=130) for seed in (0, 1)]
    stages = {"before": before, "sweep": sweep, "seeds": seeds, "longer": longer, "best recipe": records}
    (*others, last) = summarise(stages, retrofit.RIVALS, recipes)["comparisons"]
    assert others == summary["comparisons"]
    assert (last["nested"], last["rival"], last["at"]) == (*recipes[0][1:], "equal compute")
    assert last["loss"]["values"] == pytest.approx([-0.1, -0.2])


@pytest.mark.slow
def test_the_forms_at_toy_size(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "toy")
    summary = retrofit_forms.main(Namespace(out=tmp_path, workers=1, quick=True))["summary"]
    assert list(summary["short"]) == list(retrofit_forms.ROWS) and list(summary["long"]) == retrofit_forms.LONG
    parameters = {row: found["trained_parameters"] for row, found in summary["short"].items()}
    scalars = 2 * LAYERS  # gates
    assert parameters["Eq. 12, all layers"] == parameters["source"] + scalars
    assert parameters["separate, all layers"] == parameters["separate, all layers, no gates, no scale"] + scalars
    assert parameters["separate, all layers, no gates, no scale"] > parameters["source"]
    for length in ("short", "long"):
        for row, found in summary[length].items():
            gain = summary[length][retrofit_forms.rival(row)]["loss"]["mean"] - found["loss"]["mean"]
            assert gain == pytest.approx(found["gain"]["mean"]) != 0 if "source" not in row else "gain" not in found
    gates = {row for row, found in summary["short"].items() if found["widest_gate"]}
    assert gates == {row for row in retrofit_forms.ROWS if "source" not in row and "no gates" not in row}
    assert (tmp_path / "retrofit_forms.png").stat().st_size > 10_000


def test_forms_at_equal_compute(toy):
    for row in retrofit_forms.ROWS:
        run = retrofit_forms.settings(toy, row, 1e-4, 0, 10_000)
        rival = retrofit_forms.settings(toy, retrofit_forms.rival(row), 1e-4, 0, 10_000)
        assert rival["steps"] == 10_000
        spent = [each["steps"] * retrofit_forms.cost(toy, each) for each in (run, rival)]
        assert spent[0] == pytest.approx(spent[1], rel=1e-3)


@pytest.mark.slow
def test_the_whole_experiment_at_toy_size_and_again_without_a_run(toy, tmp_path, capsys):
    shutil.copytree(toy, tmp_path / "toy")
    options = Namespace(out=tmp_path, workers=1, quick=True)
    report = retrofit.main(options)
    summary = report["summary"]
    assert summary["stages"] == ["learning rates", "equal steps, equal compute", "recipes", "best recipe"]
    assert summary["results"].keys() == summary["before"].keys() == {TEXT, REASONING}
    for corpus, methods in summary["results"].items():
        assert summary["before"][corpus]["closed_gates_differ_by"] == 0.0
        for method in (*retrofit.METHODS, *(f"{rival}, longer" for rival in retrofit.RIVALS.values())):
            assert methods[method]["loss"]["seeds"] == 2
            assert methods[method]["settings_tried"] == (1 if "longer" in method else 2)
        for nested, rival in retrofit.RIVALS.items():
            spent = [methods[method]["training_flops"] for method in (nested, f"{rival}, longer")]
            assert spent[1] == pytest.approx(spent[0], rel=0.5 / retrofit.STEPS["toy"])
        assert len(methods["order 2, gates"]["scalars"]["query_gate_1"]) == LAYERS
    assert len(summary["comparisons"]) == 2 * 2 * len(retrofit.RIVALS) + 2  # the best recipes
    assert set(summary["before"][REASONING]["accuracy"]) == set(TASKS)
    assert report["versions"].keys() >= {"python", "torch", "transformers"} and report["date"]
    picture = tmp_path / "retrofit.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
    capsys.readouterr()
    again = retrofit.main(options)
    assert again["runs"] == report["runs"] and again["summary"] == summary
    assert capsys.readouterr().out.count(", 0 to make") == len(summary["stages"])
