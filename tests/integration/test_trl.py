"""SFT, DPO, GRPO and reward models with TRL, under its own defaults: bfloat16 autocast and activation checkpointing."""

import json
import math

import pytest
import torch
from transformers import AutoTokenizer

from isolated import run_isolated
from nexus_transformers import NexusForCausalLM, NexusForSequenceClassification
from nexus_transformers.conversion_scripts.convert import convert

pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

PROMPT = [{"role": "user", "content": "Which class is raised?"}]
GOOD = [{"role": "assistant", "content": "An exception of the class KeyError."}]
BAD = [{"role": "assistant", "content": "None, never, nothing at all."}]
SFT_DATA = [{"messages": PROMPT + GOOD}] * 4
DPO_DATA = [{"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}] * 4
ARGUMENTS = {
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def folder(llama_folder, tmp_path_factory):
    """A converted model with tokenizer; its gates are open, so that nesting takes part."""
    folder = tmp_path_factory.mktemp("nexus") / "model"
    convert(llama_folder, folder, gate_init=0.3, verify=False)
    return folder


def train(trainer) -> list[float]:
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == ARGUMENTS["max_steps"]
    assert all(map(math.isfinite, losses))
    return losses


def moved(trained: torch.nn.Module, folder) -> set[str]:
    before = NexusForCausalLM.from_pretrained(folder).state_dict()
    return {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}


def test_sft_learns_a_repeated_example(folder, tmp_path):
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=NexusForCausalLM.from_pretrained(folder),
        args=SFTConfig(str(tmp_path), learning_rate=0.01, **ARGUMENTS),
        train_dataset=datasets.Dataset.from_list(SFT_DATA),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    losses = train(trainer)
    assert losses[-1] < losses[0] / 2
    assert moved(trainer.model, folder) >= set(trainer.model.gates())


def test_sft_trains_an_adapter_with_the_gates(folder, tmp_path):
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=NexusForCausalLM.from_pretrained(folder),
        args=SFTConfig(str(tmp_path), learning_rate=0.05, **ARGUMENTS),
        train_dataset=datasets.Dataset.from_list(SFT_DATA),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=peft.LoraConfig(modules_to_save=["inner_norm"], task_type="CAUSAL_LM"),
    )
    losses = train(trainer)
    assert losses[-1] < losses[0] - 0.1
    trainer.save_model()
    saved = load_file(tmp_path / "adapter_model.safetensors")
    gates = NexusForCausalLM.from_pretrained(folder).gates()
    assert len(gates) == 6
    assert all(saved[f"base_model.model.{name}"] != gate for name, gate in gates.items())


def test_dpo_learns_a_preference(folder, tmp_path):
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=NexusForCausalLM.from_pretrained(folder),
        args=DPOConfig(str(tmp_path), learning_rate=1e-3, **ARGUMENTS),
        train_dataset=datasets.Dataset.from_list(DPO_DATA),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    losses = train(trainer)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3), "policy and reference start out the same"
    assert losses[-1] < losses[0] / 2
    assert moved(trainer.model, folder) >= set(trainer.model.gates())
    assert not moved(trainer.ref_model, folder)


def test_a_reward_model_learns_a_preference(folder, tmp_path):
    from trl import RewardConfig, RewardTrainer

    trainer = RewardTrainer(
        model=NexusForSequenceClassification.from_pretrained(folder, num_labels=1),
        args=RewardConfig(str(tmp_path), learning_rate=1e-2, **ARGUMENTS),
        train_dataset=datasets.Dataset.from_list(DPO_DATA),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    losses = train(trainer)
    assert losses[-1] < losses[0] / 2


def test_grpo_learns_what_is_rewarded(folder, tmp_path):
    """Rewarded are tokens of even number, of 6 in a completion."""
    from trl import GRPOConfig, GRPOTrainer

    def reward(completion_ids, **_):
        return [float(sum(token % 2 == 0 for token in ids)) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=NexusForCausalLM.from_pretrained(folder),
        reward_funcs=reward,
        args=GRPOConfig(
            str(tmp_path),
            num_generations=16,
            max_completion_length=6,
            learning_rate=0.05,
            **ARGUMENTS | {"per_device_train_batch_size": 16},
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": PROMPT}] * 4),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    train(trainer)
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert rewards[-1] > rewards[0] + 1
    assert moved(trainer.model, folder) >= set(trainer.model.gates())


@pytest.mark.slow
def test_sft_and_dpo_train_from_a_path_with_remote_code(folder, tmp_path):
    script = """
import json
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

folder, arguments, sft_data, dpo_data = sys.argv[1], *map(json.loads, sys.argv[2:])
result = {}
for trainer_class, config_class, data, learning_rate in (
    (SFTTrainer, SFTConfig, sft_data, 1e-2),
    (DPOTrainer, DPOConfig, dpo_data, 1e-3),
):
    trainer = trainer_class(
        model=folder,
        args=config_class("out", trust_remote_code=True, learning_rate=learning_rate, **arguments),
        train_dataset=Dataset.from_list(data),
    )
    trainer.train()
    trainer.save_model(trainer_class.__name__)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result[trainer_class.__name__] = [type(trainer.model).__module__, losses]
print(json.dumps(result))
"""
    result = run_isolated(script, tmp_path, folder, *map(json.dumps, (ARGUMENTS, SFT_DATA, DPO_DATA)))
    assert set(result) == {"SFTTrainer", "DPOTrainer"}
    for name, (module, losses) in result.items():
        assert module.startswith("transformers_modules.")
        assert losses[-1] < losses[0] / 2, name
        assert (tmp_path / name / "modeling_nexus.py").exists()
        saved = NexusForCausalLM.from_pretrained(tmp_path / name)
        assert moved(saved, folder) >= set(saved.gates())
