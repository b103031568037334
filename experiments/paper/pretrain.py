"""
Train a model of the paper from scratch, on rows that pack.py made. The files in launch/ start it.

    python -m experiments.paper.pretrain --preset pythia-70m --arm nexus-qk-shared --data PACKED --out OUT

`--arm standard` is the baseline: the standard model of the same shape. `--order 2,1,1,1,1,1` nests some layers only,
which the paper does not. All options of Transformers' TrainingArguments work
and override the preset, e.g. --max_steps, --report_to wandb, --torch_compile, --gradient_checkpointing. Run again after
an interruption, the same command goes on from the last checkpoint in OUT/trainer. OUT gets the model, its tokenizer and
run.json.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import load_from_disk
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

from nexus_transformers import NexusConfig, NexusForCausalLM

from . import record
from .presets import ARMS, MAIN, PRETRAINING, Pretraining


@dataclass
class RunArguments:
    preset: str = field(metadata={"help": "the model", "choices": list(PRETRAINING)})
    data: str = field(metadata={"help": "the folder that pack.py made"})
    out: str = field(metadata={"help": "folder of the trained model"})
    arm: str = field(default=MAIN["pretraining"], metadata={"help": "the kind of attention", "choices": list(ARMS)})
    order: str | None = field(
        default=None, metadata={"help": "attention order, in place of the arm's: a number, or one per layer as in 2,1"}
    )
    sequences: int | None = field(default=None, metadata={"help": "per step, over all processes"})


def parse(arguments: list[str] | None) -> tuple[RunArguments, TrainingArguments, Pretraining]:
    """The run, Trainer's arguments with the preset's recipe as their defaults, and the preset."""
    workers = 2 if torch.cuda.is_available() else 0
    defaults = {"dataloader_num_workers": workers, "logging_steps": 10, "save_steps": 500}
    return record.parse(arguments, (RunArguments, TrainingArguments), PRETRAINING, "pretrain", __doc__, **defaults)


def make_model(preset: Pretraining, arm: str, order: str | None, tokenizer) -> NexusForCausalLM:
    """The untrained model; every process makes the same."""
    fields = preset.config(arm)
    try:
        if order is not None:
            orders = [int(part) for part in order.split(",")]
            fields["attention_order"] = orders if len(orders) > 1 else orders[0]
        fields |= {"vocab_size": preset.vocab_size or len(tokenizer)}
        fields |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = NexusConfig(**fields)
    except (ValueError, StrictDataclassError) as error:
        sys.exit(f"pretrain: --arm {arm}, --order {order}: {error.__cause__ or error}")
    if len(tokenizer) > config.vocab_size:
        sys.exit(f"pretrain: {len(tokenizer)} tokens are more than the {config.vocab_size} rows of the embedding.")
    model = NexusForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(weight, std=preset.output_std)
    return model


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Rows of equal length, nothing padded -> input_ids and labels, (B, T) each."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids}


def main(arguments: list[str] | None = None) -> None:
    # Before anything else: TrainingArguments starts the process group, by what the launcher left in the environment.
    run, training, preset = parse(arguments)
    data = Path(run.data)
    if not (data / "pack.json").exists():
        sys.exit(f"pretrain: {data} is not a folder that pack.py made.")
    rows = load_from_disk(data)
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    length = len(rows["train"][0]["input_ids"])
    if length > preset.length:
        sys.exit(f"pretrain: rows of {length} tokens are longer than the {preset.length} of {run.preset}.")

    set_seed(training.seed)
    model = make_model(preset, run.arm, run.order, tokenizer)
    trainer = Trainer(
        model,
        training,
        data_collator=collate,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
    )
    facts = record.train(trainer, run, json.loads((data / "pack.json").read_text())) | {
        "tokens": trainer.state.global_step * run.sequences * length,
        "validation_loss": trainer.evaluate()["eval_loss"],
    }
    record.save_run(trainer, run, facts)


if __name__ == "__main__":
    main()
