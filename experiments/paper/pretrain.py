"""
Train a model of the paper from scratch, on rows that pack.py made. The files in launch/ start it.

    python -m experiments.paper.pretrain --preset pythia-70m --arm nexus-qk-shared --data PACKED --out OUT

`--arm standard` is the baseline: the standard model of the same shape. `--order 2,1,1,1,1,1` nests some layers only,
which the paper does not. All options of Transformers' TrainingArguments work
and override the preset, e.g. --max_steps, --report_to wandb, --torch_compile, --gradient_checkpointing. Run again after
an interruption, the same command goes on from the last checkpoint in OUT/trainer. OUT gets the model, its tokenizer and
run.json.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import load_from_disk
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments, set_seed

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


def parse(arguments: list[str]) -> tuple[RunArguments, TrainingArguments, Pretraining]:
    """The run, Trainer's arguments with the preset's recipe as their defaults, and the preset."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=list(PRETRAINING))
    first.add_argument("--out", default="run")
    known, _ = first.parse_known_args(arguments)
    preset = PRETRAINING[known.preset or "toy"]
    parser = HfArgumentParser((RunArguments, TrainingArguments), prog="pretrain", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(
        **preset.training(),
        output_dir=str(Path(known.out) / "trainer"),
        use_cpu=not torch.accelerator.is_available(),  # unsaid, each process would train alone on the CPU
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_num_workers=2 if torch.cuda.is_available() else 0,
        ddp_find_unused_parameters=False,  # every parameter takes part in every step
        logging_steps=10,
        save_steps=500,
        save_total_limit=2,
        logging_first_step=True,
        report_to="none",
    )
    run, training = parser.parse_args_into_dataclasses(arguments)
    return run, training, preset


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
    run, training, preset = parse(sys.argv[1:] if arguments is None else arguments)
    sequences = run.sequences or preset.sequences
    record.set_accumulation(training, sequences, "pretrain")
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
    record.parallelism(trainer)
    checkpoint = record.last_checkpoint(training)
    start = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
    output = trainer.train(resume_from_checkpoint=checkpoint)
    loss = trainer.evaluate()["eval_loss"]
    facts = {
        "preset": run.preset,
        "arm": run.arm,
        "data": json.loads((data / "pack.json").read_text()),
        "tokens": trainer.state.global_step * sequences * length,
        "epochs": round(trainer.state.epoch, 4),
        "validation_loss": loss,
    }
    record.save_run(trainer, output, Path(run.out), start, sequences, facts)


if __name__ == "__main__":
    main()
