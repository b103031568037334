"""The paper's models: the shapes of the published ones, their recipe, and that what is said of them is so."""

import json
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

import checkpoints
from common import costs
from nexus_transformers import NexusConfig, NexusForCausalLM
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.conversion_scripts.families import FAMILIES, decoder_fields

pytest.importorskip("datasets")
from experiments.paper import budget, table
from experiments.paper.presets import ARMS, PRETRAINING, RETROFIT
from experiments.paper.pretrain import make_model, parse
from experiments.paper.tasks import TASKS

FOLDER = Path(table.__file__).parent
HUB_CONFIGS = json.loads(
    (Path(__file__).parents[1] / "conversion_scripts" / "families" / "hub_configs.json").read_text()
)
DOCS = (FOLDER.parents[1] / "docs" / "paper.md").read_text()
PYTHIA = [name for name in PRETRAINING if name != "toy"]


def neox(name: str) -> GPTNeoXConfig:
    """The configuration on the Hub: one of it is in this repository, the sizes differ in these fields only."""
    preset = PRETRAINING[name]
    fields = dict(HUB_CONFIGS["EleutherAI/pythia-160m"])
    fields |= {"hidden_size": preset.hidden_size, "intermediate_size": 4 * preset.hidden_size}
    fields |= {"num_hidden_layers": preset.num_layers, "num_attention_heads": preset.num_attention_heads}
    return GPTNeoXConfig(**fields)


def rows(text: str, heading: str) -> list[list[str]]:
    """Those of the table under a heading of a page."""
    lines = text.split(f"\n## {heading}")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PYTHIA)
def test_a_pythia_preset_has_the_parameters_of_the_published_model(name):
    preset = PRETRAINING[name]
    with torch.device("meta"):
        source = AutoModelForCausalLM.from_config(neox(name))
        models = [NexusForCausalLM(NexusConfig(**preset.config(arm))) for arm in ("standard", "nexus-qk-shared")]
    assert [count(model) for model in (source, *models)] == [preset.parameters] * 3


def test_each_arm_of_table_2_is_built_at_toy_size_and_has_the_parameters_that_the_paper_says():
    """ "Shared: Yes" adds none, "No" one inner attention, W_Q, W_K, W_V, per layer and refined projection."""
    tokenizer = checkpoints.tokenizer()
    models = {arm: make_model(PRETRAINING["toy"], arm, None, tokenizer) for arm in ARMS}
    counts = {arm: count(model) for arm, model in models.items()}
    standard = counts.pop("standard")
    inner = 2 * 3 * (32 * 32 + 32)  # layers, projections
    assert counts.pop("ours") == standard + 2 * 2  # gates
    assert {arm: number - standard for arm, number in counts.items()} == {
        **{"nexus-q": inner, "nexus-qk": 2 * inner, "nexus-qkv": 3 * inner},
        **{"nexus-qk-shared": 0, "nexus-recursive": 0, "eq7": 0},
    }
    for model in models.values():
        model.load_state_dict(models["standard"].state_dict(), strict=False)
    ids = torch.arange(20)[None]
    outputs = {arm: model(ids).logits for arm, model in models.items()}
    assert all(output.isfinite().all() for output in outputs.values())
    assert not any(torch.equal(outputs[one], outputs[other]) for one, other in combinations(counts, 2))
    assert torch.equal(outputs["ours"], outputs["standard"]), "with gates, a retrofit starts as its source"
    for arm, model in models.items():
        assert (arm == "standard") == (model.config.layer_orders == [1, 1])
        assert model.config.inner_scale == bool(model.gates()) == (arm == "ours")  # the paper has neither


def test_the_table_of_arms_in_the_docs_is_what_the_presets_say():
    """Its config column makes each arm, and its figures are counted."""
    small, large = ({arm: PRETRAINING[name].config(arm) for arm in ARMS} for name in ("pythia-70m", "pythia-1b"))
    operations = {arm: costs.flops(NexusConfig(**large[arm]), 1, 2048, training=True) for arm in ARMS}
    cache = {arm: costs.cache_bytes(NexusConfig(**large[arm]), 1, 1, 1) for arm in ARMS}
    table_of_arms = {row[0].strip("`"): row[2:6] for row in rows(DOCS, "The arms")}
    assert table_of_arms.keys() == ARMS.keys() - {"ours"}
    for arm, cells in table_of_arms.items():
        made = NexusConfig(**eval(f"dict({cells[0].strip('`')})"), inner_scale=False)
        assert {name: getattr(made, name) for name in ARMS[arm]} == ARMS[arm]
        with torch.device("meta"):
            parameters = count(NexusForCausalLM(NexusConfig(**small[arm])))
        attention, total = (operations[arm][part] / operations["standard"][part] for part in ("attention", "total"))
        assert cells[1:] == [
            f"{parameters / 1e6:.1f} M",
            f"{attention:.0f} x, {total:.2f} x",
            f"{cache[arm] / cache['standard']:g} x",
        ]
    grouped = [NexusConfig(**RETROFIT["qwen2.5-1.5b"].shape, **ARMS[arm]) for arm in ("eq7", "standard")]
    nested, standard = (costs.cache_bytes(config, 1, 1, 1) for config in grouped)
    assert nested / standard == (3 + 12 / 2) / 2, "as the page says of grouped heads"


@pytest.mark.parametrize("name", PYTHIA)
def test_a_pythia_preset_is_what_the_converter_makes_of_the_published_config(name):
    raw = neox(name).to_dict() if f"EleutherAI/{name}" not in HUB_CONFIGS else HUB_CONFIGS[f"EleutherAI/{name}"]
    expected = NexusConfig(**FAMILIES["gpt_neox"].nexus_config(raw, GPTNeoXConfig(**raw)))
    actual = NexusConfig(**PRETRAINING[name].config("standard"))
    differing = {key for key, value in decoder_fields(expected).items() if decoder_fields(actual)[key] != value}
    assert differing == {"initializer_range"}  # the published one is not what the suite was trained with


def test_a_toy_of_the_same_kind_computes_what_gpt_neox_computes(tmp_path):
    """Weights from a GPT-NeoX of the toy's shape, through the converter, in the model that the preset makes."""
    preset = PRETRAINING["toy"]
    shape = {"hidden_size": preset.hidden_size, "intermediate_size": 4 * preset.hidden_size}
    shape |= {"num_hidden_layers": preset.num_layers, "num_attention_heads": preset.num_attention_heads}
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    source = checkpoints.save("gpt_neox", tmp_path / "source", rope_parameters=rotary, **shape)
    convert(source, tmp_path / "nexus", order=1, verify=False)
    weights = NexusForCausalLM.from_pretrained(tmp_path / "nexus").state_dict()
    model = NexusForCausalLM(NexusConfig(**preset.config("standard") | {"vocab_size": checkpoints.VOCAB_SIZE})).eval()
    model.load_state_dict(weights)
    ids = torch.randint(checkpoints.VOCAB_SIZE, (2, 40))
    expected = AutoModelForCausalLM.from_pretrained(source)(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in RETROFIT if name != "toy"])
def test_a_retrofit_preset_states_the_shape_of_its_source(name):
    preset = RETROFIT[name]
    published = HUB_CONFIGS.get(preset.source) or HUB_CONFIGS[preset.source + "-Instruct"]
    names = {"num_layers": "num_hidden_layers"}
    assert {key: published[names.get(key, key)] for key in preset.shape} == preset.shape


def test_one_step_is_two_million_tokens_and_the_recipe_that_of_the_suite():
    preset = PRETRAINING["pythia-410m"]
    assert preset.sequences * preset.length == 2_097_152
    assert 143_000 * preset.sequences * preset.length == 299_892_736_000  # what the suite says that each model saw
    # Pythia 410M's own configuration file
    _, training, _ = parse(["--preset", "pythia-410m", "--data", "d", "--out", "o", "--max_steps", "143000"])
    assert (training.learning_rate, training.adam_beta1, training.adam_beta2) == (3e-4, 0.9, 0.95)
    assert (training.weight_decay, training.max_grad_norm, training.adam_epsilon) == (0.1, 1.0, 1e-8)
    assert training.get_warmup_steps(training.max_steps) == 1430
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    from transformers import get_scheduler

    scheduler = get_scheduler(
        training.lr_scheduler_type, optimizer, 1430, 143_000, scheduler_specific_kwargs=training.lr_scheduler_kwargs
    )
    rates = [scheduler.lr_lambdas[0](step) for step in (0, 1429, 142_999)]
    assert rates[0] < 0.001
    assert rates[1:] == pytest.approx([1.0, 0.1], abs=1e-3)


def test_a_new_model_starts_as_gpt_neox_does():
    model = make_model(PRETRAINING["toy"], "nexus-qk-shared", "2,1", checkpoints.tokenizer())
    assert model.config.layer_orders == [2, 1]
    assert not model.gates()
    for name, weight in model.named_parameters():
        if name.endswith(".bias"):
            assert not weight.any()
        elif weight.ndim == 2:
            to_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 2 / (2 * math.sqrt(32)) if to_residual else math.sqrt(2 / (5 * 32))
            assert weight.std().item() == pytest.approx(std, rel=0.1), name


def test_the_committed_table_and_estimates_are_what_the_scripts_write():
    text = table.PAGE.read_text()
    assert text == table.page(table.reports(FOLDER / "results")) and f"*{table.NOT_RUN}*" in text
    assert "`ARM={pretraining}` from scratch and `ARM={reasoning}` in".format(**table.MAIN) in text
    assert budget.tables() in (FOLDER / "README.md").read_text()


def test_the_table_has_every_figure_of_the_paper_and_none_of_ours_that_was_not_run():
    text = table.page([])
    found = [rows(text, f"Table {number}") for number in (1, 2, 3)]
    assert [len(each) for each in found] == [4 * 7, 7 * 7, 2 * 4]
    assert all(row[5:] == [table.NOT_RUN] * 2 for row in found[0] + found[2])
    assert all(row[7] == table.NOT_RUN for row in found[1])
    for values in (*table.TABLE_1.values(), *table.TABLE_3.values(), *([each] for _, each in table.TABLE_2.values())):
        for figures in values:
            if "- " not in figures:
                *single, mean = map(float, figures.split())
                assert len(single) in (3, 6) and abs(sum(single) / len(single) - mean) <= 0.051, figures
    assert ["pythia-1b", "LogiQA", "`logiqa`, acc", "29.6", "29.0"] in [row[:5] for row in found[0]]
    assert ["Nexus-QKV", "Q, K, V", "no", "2", "`nexus-qkv`", "SciQ", "63.6"] in [row[:7] for row in found[1]]
    assert ["qwen2.5-7b", "mean", "", "59.1", "60.1"] in [row[:5] for row in found[2]]
    assert {row[1] for row in found[0] + found[2]} == {table.MEAN, *(task.title for task in TASKS.values())}


def test_the_rows_of_table_2_are_the_arms_that_their_columns_say():
    for row in rows(table.page([]), "Table 2"):
        fields = ARMS[row[4].strip("`")]
        branches = zip("QKV", ("query", "key", "value"), strict=True)
        refined = [letter for letter, branch in branches if fields[f"refine_{branch}"]]
        shared = {"separate": "no", "shared": "yes", "self": "no weights"}[fields["inner_attention"]]
        expected = ["-"] * 3 if row[0] == "Baseline" else [", ".join(refined), shared, str(fields["attention_order"])]
        assert row[1:4] == expected


def test_the_table_says_what_was_not_done_in_full(tmp_path):
    report = {"preset": "pythia-70m", "arm": "nexus-qk-shared", "order": [2, 1, 1, 1, 1, 1]}
    report |= {"steps": 5, "planned_steps": 10, "tokens": 15e9, "limit": 20, "local_data": True}
    (tmp_path / "a.json").write_text(json.dumps(report | {"tasks": {"sciq": {"score": 60.04}}}))
    standard = {"preset": "pythia-70m", "arm": "standard", "order": 1, "tokens": 2e9}
    scores = {name: {"score": 59.0} for name, task in TASKS.items() if task.group == "pretraining"}
    (tmp_path / "b.json").write_text(json.dumps(standard | {"tasks": scores}))
    other = {"preset": "pythia-70m", "arm": "nexus-qk", "order": 2, "tasks": {"sciq": {"score": 61.0}}}
    (tmp_path / "c.json").write_text(json.dumps(other))
    text = table.page(table.reports(tmp_path))
    notes = "order [2, 1, 1, 1, 1, 1], 15B tokens, training not finished, first 20 questions only, local data"
    (sciq,) = (row for row in rows(text, "Table 1") if row[:2] == ["pythia-70m", "SciQ"])
    assert sciq[3:] == ["61.5", "68.5", "59.0 (2B tokens)", f"60.0 ({notes}); 61.0 (nexus-qk)"]
    (mean,) = (row for row in rows(text, "Table 1") if row[:2] == ["pythia-70m", "mean"])
    assert mean[5:] == ["59.0 (2B tokens)", table.NOT_RUN], "of a run that has all tasks"
    ours = {(row[0], row[5]): row[7] for row in rows(text, "Table 2")}
    assert ours["Nexus-QK", "SciQ"] == "61.0" and ours["Nexus-Q", "SciQ"] == table.NOT_RUN
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"d\.json was not written by evaluate\.py"):
        table.reports(tmp_path)


def test_the_fsdp2_config_is_what_accelerate_understands():
    """As `accelerate launch` reads it and hands it to its processes."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = str(FOLDER / "launch" / "fsdp2.yaml")
    machines = "--num_processes 16 --num_machines 2 --machine_rank 1 --main_process_ip node0 --main_process_port 4321"
    command = ["--config_file", file, *machines.split(), "--module", "experiments.paper.pretrain"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert load_config_from_file(file).distributed_type.value == "FSDP"
    environment = prepare_multi_gpu_env(arguments)
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", 1)
    assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("static", "node0:4321")
    with patch_environment(**{key: value for key, value in environment.items() if key.startswith("FSDP_")}):
        plugin = FullyShardedDataParallelPlugin()
        with torch.device("meta"):
            plugin.set_auto_wrap_policy(NexusForCausalLM(NexusConfig(**PRETRAINING["pythia-70m"].config("nexus-qk"))))
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.activation_checkpointing) == (2, True, True)
    assert plugin.cpu_ram_efficient_loading
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert {cls.__name__ for cls in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]} == {"NexusDecoderLayer"}
