"""
Fine-tune a converted model with TRL, as the paper's retrofit does. The files in launch/ start it.

    nexus convert Qwen/Qwen2.5-1.5B CONVERTED --inner-attention separate --no-gate --no-inner-scale
    python -m experiments.paper.sft --preset qwen2.5-1.5b --arm nexus-qk --model CONVERTED --data DATA --out OUT

The arm is the one that the model was converted to: `nexus-qk` is the paper's retrofit, whose inner layers start random;
`ours` has gates, which start closed and have a learning rate of their own, so that it starts as its source; `standard`
is the baseline. DATA is a .jsonl file or a dataset of the Hub, with a column "messages",
or "prompt" and "completion". All options of TRL's SFTConfig work and override the preset. An interrupted run goes on
from its last checkpoint when run again.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from nexus_transformers import NexusConfig, NexusForCausalLM

from . import record
from .presets import ARMS, MAIN, RETROFIT, Retrofit

FORMATS = (["messages"], ["prompt", "completion"])


@dataclass
class RunArguments:
    model: str = field(metadata={"help": "the folder that `nexus convert` wrote"})
    out: str = field(metadata={"help": "folder of the trained model"})
    preset: str = field(metadata={"help": "the recipe", "choices": list(RETROFIT)})
    arm: str = field(default=MAIN["reasoning"], metadata={"help": "that the model is of", "choices": list(ARMS)})
    data: str = field(default="open-r1/OpenR1-Math-220k", metadata={"help": "a file, or a dataset of the Hub"})
    data_split: str = field(default="train", metadata={"help": "of a dataset of the Hub"})
    sequences: int | None = field(default=None, metadata={"help": "per step, over all processes"})
    gate_learning_rate: float = field(default=3e-3, metadata={"help": "of the gates"})


class RetrofitTrainer(SFTTrainer):
    """SFTTrainer whose gates, if the model has any, learn at a rate of their own, with the same schedule."""

    def __init__(self, *args, gate_learning_rate: float, **kwargs):
        self.gate_learning_rate = gate_learning_rate
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        gates = {id(gate) for gate in (self.model if model is None else model).gates().values()}
        if gates and all(group.get("role") != "gates" for group in optimizer.param_groups):
            moved = []
            for group in optimizer.param_groups:
                moved += [parameter for parameter in group["params"] if id(parameter) in gates]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gates]
            rate = self.gate_learning_rate
            optimizer.add_param_group({"params": moved, "lr": rate, "weight_decay": 0.0, "role": "gates"})
        return optimizer


def parse(arguments: list[str] | None) -> tuple[RunArguments, SFTConfig, Retrofit]:
    """The run, TRL's arguments with the preset's recipe as their defaults, and the preset."""
    defaults = {"save_steps": 200, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    defaults["eos_token"] = "<|im_end|>"  # ends a turn in Qwen's chat template; the base models end with another
    return record.parse(arguments, (RunArguments, SFTConfig), RETROFIT, "sft", __doc__, **defaults)


def conversations(source: str, split: str) -> Dataset:
    """The columns that TRL reads; others it might take for something that they are not."""
    if Path(source).is_file():
        rows = load_dataset("json", data_files=source, split="train")
    elif Path(source).suffix in (".json", ".jsonl"):
        sys.exit(f"sft: {source} does not exist.")
    else:
        rows = load_dataset(source, split=split)
    for columns in FORMATS:
        if set(columns) <= set(rows.column_names):
            return rows.select_columns(columns)
    sys.exit(f'sft: {source} needs a column "messages", or "prompt" and "completion"; it has {rows.column_names}.')


def config_of(folder: Path, arm: str) -> NexusConfig:
    """That of the converted model; ends the program if it is of another arm."""
    file = folder / "config.json"
    if not file.exists() or json.loads(file.read_text()).get("model_type") != "nexus":
        sys.exit(f"sft: {folder} is not a Nexus model; make one with `nexus convert`.")
    config = NexusConfig.from_pretrained(folder)
    differing = [name for name, value in ARMS[arm].items() if getattr(config, name) != value]
    if differing:
        sys.exit(f"sft: {folder} is not of the arm {arm}, by its {', '.join(differing)}; convert it with ARM={arm}.")
    return config


def main(arguments: list[str] | None = None) -> None:
    # Before anything else: SFTConfig starts the process group, by what the launcher left in the environment.
    run, training, _ = parse(arguments)
    folder, source = Path(run.model), run.data
    config = config_of(folder, run.arm)
    with training.main_process_first(desc="loading of the data"):
        rows = conversations(source, run.data_split)

    set_seed(training.seed)
    # float32: a gate that is stored in bf16 does not move at small learning rates. Autocast computes in bf16.
    model = NexusForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    trainer = RetrofitTrainer(
        model=model,
        args=training,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(folder),
        gate_learning_rate=run.gate_learning_rate,
    )
    facts = record.train(trainer, run, Path(source).name if Path(source).exists() else source) | {
        "gate_learning_rate": run.gate_learning_rate if model.config.inner_gate else None,
    }
    record.save_run(trainer, run, facts)


if __name__ == "__main__":
    main()
