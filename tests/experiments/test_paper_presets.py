"""The paper's models: the shapes of the published ones, their recipe, and that what is said of them is so."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from nexus_transformers import NexusConfig, NexusForCausalLM
from nexus_transformers.conversion_scripts.families import FAMILIES, decoder_fields

pytest.importorskip("datasets")
from experiments.paper import budget, table
from experiments.paper.presets import PRETRAINING, RETROFIT
from experiments.paper.pretrain import make_model, parse
from experiments.paper.tasks import TASKS

FOLDER = Path(table.__file__).parent
HUB_CONFIGS = json.loads(
    (Path(__file__).parents[1] / "conversion_scripts" / "families" / "hub_configs.json").read_text()
)
PYTHIA = [name for name in PRETRAINING if name != "toy"]


def neox(name: str) -> GPTNeoXConfig:
    """The configuration on the Hub: one of it is in this repository, the sizes differ in these fields only."""
    preset = PRETRAINING[name]
    fields = dict(HUB_CONFIGS["EleutherAI/pythia-160m"])
    fields |= {"hidden_size": preset.hidden_size, "intermediate_size": 4 * preset.hidden_size}
    fields |= {"num_hidden_layers": preset.num_layers, "num_attention_heads": preset.num_attention_heads}
    return GPTNeoXConfig(**fields)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PYTHIA)
def test_a_pythia_preset_has_the_parameters_of_the_published_model_at_every_order(name):
    preset = PRETRAINING[name]
    with torch.device("meta"):
        source = AutoModelForCausalLM.from_config(neox(name))
        models = [NexusForCausalLM(NexusConfig(**preset.config(order))) for order in (1, 2)]
    assert [count(model) for model in (source, *models)] == [preset.parameters] * 3


@pytest.mark.parametrize("name", PYTHIA)
def test_a_pythia_preset_is_what_the_converter_makes_of_the_published_config(name):
    raw = neox(name).to_dict() if f"EleutherAI/{name}" not in HUB_CONFIGS else HUB_CONFIGS[f"EleutherAI/{name}"]
    expected = NexusConfig(**FAMILIES["gpt_neox"].nexus_config(raw, GPTNeoXConfig(**raw)))
    actual = NexusConfig(**PRETRAINING[name].config(1))
    differing = {key for key, value in decoder_fields(expected).items() if decoder_fields(actual)[key] != value}
    assert differing == {"initializer_range"}  # the published one is not what the suite was trained with


def test_a_toy_of_the_same_kind_computes_what_gpt_neox_computes(tmp_path):
    """Weights from a GPT-NeoX of the toy's shape, through the converter, in the model that the preset makes."""
    import checkpoints
    from nexus_transformers.conversion_scripts.convert import convert

    preset = PRETRAINING["toy"]
    shape = {"hidden_size": preset.hidden_size, "intermediate_size": 4 * preset.hidden_size}
    shape |= {"num_hidden_layers": preset.num_layers, "num_attention_heads": preset.num_attention_heads}
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    source = checkpoints.save("gpt_neox", tmp_path / "source", rope_parameters=rotary, **shape)
    convert(source, tmp_path / "nexus", order=1, verify=False)
    weights = NexusForCausalLM.from_pretrained(tmp_path / "nexus").state_dict()
    model = NexusForCausalLM(NexusConfig(**preset.config(1) | {"vocab_size": checkpoints.VOCAB_SIZE})).eval()
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
    import checkpoints

    model = make_model(PRETRAINING["toy"], "2,1", checkpoints.tokenizer())
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
    assert (FOLDER / "PAPER.md").read_text() == table.page(table.reports(FOLDER / "results"))
    assert "\n".join(budget.lines()) in (FOLDER / "README.md").read_text()


def test_the_table_invents_nothing(tmp_path):
    text = table.page([])
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][0:]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if not row.startswith("| model")]
    assert len(rows) == 4 * 6 + 2 * 3
    figures = {(row[0], row[1]): row[3:5] for row in rows if row[3] != table.NOT_ENTERED}
    assert figures == {
        ("pythia-70m", "SciQ"): ["61.5", "68.5"],
        ("pythia-1b", "PiQA"): ["62.5", "63.6"],
        ("qwen2.5-1.5b", "MATH-500"): ["78.6", "80.1"],
        ("qwen2.5-7b", "AIME24"): ["45.2", "47.5"],
    }
    assert all(row[5:] == [table.NOT_RUN, table.NOT_RUN] for row in rows)
    assert {row[1] for row in rows} == {task.title for task in TASKS.values()}


def test_the_table_says_what_was_not_done_in_full(tmp_path):
    report = {"preset": "pythia-70m", "order": [2, 1, 1, 1, 1, 1], "tasks": {"sciq": {"score": 60.04}}}
    report |= {"steps": 5, "planned_steps": 10, "tokens": 15e9, "limit": 20, "local_data": True, "gated": True}
    (tmp_path / "a.json").write_text(json.dumps(report))
    standard = {"preset": "pythia-70m", "order": 1, "tasks": {"sciq": {"score": 59.0}}, "tokens": 2e9}
    (tmp_path / "b.json").write_text(json.dumps(standard))
    row = next(line for line in table.page(table.reports(tmp_path)).splitlines() if "pythia-70m | SciQ" in line)
    notes = "order [2, 1, 1, 1, 1, 1], with gates, 15B tokens, training not finished, first 20 questions only"
    assert row.endswith(f"| 61.5 | 68.5 | 59.0 (2B tokens) | 60.0 ({notes}, local data) |")
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"c\.json was not written by evaluate\.py"):
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
            plugin.set_auto_wrap_policy(NexusForCausalLM(NexusConfig(**PRETRAINING["pythia-70m"].config(2))))
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.activation_checkpointing) == (2, True, True)
    assert plugin.cpu_ram_efficient_loading
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert {cls.__name__ for cls in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]} == {"NexusDecoderLayer"}
