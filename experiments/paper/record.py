"""What pretrain.py and sft.py share: arguments, and run.json beside the weights, which evaluation and table read."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from common.report import heading, save
from nexus_transformers import NexusForCausalLM

FILE = "run.json"
STARTED = "started.json"  # beside the checkpoints: what they are of
WRAPPER = "_checkpoint_wrapped_module."  # which FSDP puts into names where it recomputes activations


def parse(
    arguments: list[str] | None,
    kinds: tuple[type, type[TrainingArguments]],
    presets: dict,
    program: str,
    about: str,
    **defaults,
) -> tuple:
    """
    The run, Trainer's arguments, which start the process group, and the preset.

    Args:
        kinds: Dataclasses of the run's own arguments, and of Trainer's.
        defaults: Of Trainer's arguments, over those that both programs have, and under the preset's recipe.
    """
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=list(presets), default=next(iter(presets)))
    first.add_argument("--out", default="run")
    known, _ = first.parse_known_args(arguments)
    preset = presets[known.preset]
    parser = HfArgumentParser(kinds, prog=program, description=about)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(
        output_dir=str(Path(known.out) / "trainer"),
        use_cpu=not torch.accelerator.is_available(),  # unsaid, each process would train alone on the CPU
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,  # every parameter takes part in every step
        save_total_limit=2,
        logging_first_step=True,
        report_to="none",
        **defaults,
        **preset.training,
    )
    run, training = parser.parse_args_into_dataclasses(arguments)
    run.sequences = run.sequences or preset.sequences
    set_accumulation(training, run.sequences, program)
    return run, training, preset


def set_accumulation(training: TrainingArguments, sequences: int, program: str) -> None:
    """As many passes per step as make `sequences` of what all processes take in one pass."""
    at_once = training.per_device_train_batch_size * training.world_size
    if sequences % at_once:
        sys.exit(
            f"{program}: {sequences} sequences per step cannot be made of {training.world_size} processes with "
            f"{training.per_device_train_batch_size} each; change --sequences or --per_device_train_batch_size."
        )
    training.gradient_accumulation_steps = sequences // at_once


def parallelism(trainer: Trainer) -> str:
    """How the model lies on the processes: "one process", "ddp" or "fsdp2"; ends the program if it is not as asked."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" or trainer.args.fsdp
    if trainer.is_fsdp_enabled:
        return f"fsdp{trainer.accelerator.state.fsdp_plugin.fsdp_version}"
    if asked:  # accelerate goes on without a word, and every process holds the whole model
        device = trainer.args.device.type
        sys.exit(f"FSDP was asked for, but accelerate does not shard on the {device}; use the torchrun file there.")
    return "ddp" if trainer.args.world_size > 1 else "one process"


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may lie in parts on several processes, all of which must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def checkpoints(folder: Path) -> dict[int, Path]:
    """By the steps that they took, the latest first. Without its state, the last file of all, one is half-written."""
    written = [file.parent for file in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    found = {int(each.name.rsplit("-", 1)[1]): each for each in written}
    return dict(sorted(found.items(), reverse=True))


def same_run(trainer: Trainer, run: Any, data: Any) -> None:
    """
    Ends the program if the folder has checkpoints of another run, whose tensors may have the same names, or all of this
    one. `data`: what identifies it.
    """
    folder = Path(trainer.args.output_dir)
    order = trainer.model.config.attention_order
    wanted = {"preset": run.preset, "arm": run.arm, "order": order, "sequences_per_step": run.sequences, "data": data}
    started = folder / STARTED
    if not checkpoints(folder):
        if trainer.is_world_process_zero():
            save(wanted, started)
        return
    found = json.loads(started.read_text()) if started.exists() else {}
    differing = [
        f"{name} {found.get(name)!r}, now {value!r}" for name, value in wanted.items() if found.get(name) != value
    ]
    if differing:
        sys.exit(f"{folder} has checkpoints of another run ({'; '.join(differing)}): choose another --out.")
    finished = Path(run.out) / FILE
    record = json.loads(finished.read_text()) if finished.exists() else {"steps": 0, "planned_steps": 1}
    if record["steps"] >= planned(trainer, record["planned_steps"]):
        if trainer.is_world_process_zero():
            print(f"{finished} is of this run, which has taken all of its {record['steps']} steps: nothing to do.")
        sys.exit()


def planned(trainer: Trainer, before: int) -> int:
    """Steps of the whole run; `before`: as many as it had, where not steps but epochs are given."""
    return trainer.args.max_steps if trainer.args.max_steps > 0 else before


def last_before_the_end(trainer: Trainer) -> tuple[int, str | None]:
    """The last checkpoint to go on from, and its steps. Trainer, given one of the last step, would take one more."""
    for step, folder in checkpoints(Path(trainer.args.output_dir)).items():
        if step < planned(trainer, json.loads((folder / TRAINER_STATE_NAME).read_text())["max_steps"]):
            return step, str(folder)
    return 0, None


def train(trainer: Trainer, run: Any, data: Any) -> dict:
    """
    Trains, from where an interrupted run left off, and returns what run.json says of that. `data`: what identifies it.
    """
    shared_out = parallelism(trainer)
    same_run(trainer, run, data)
    start, checkpoint = last_before_the_end(trainer)
    seconds = trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]
    return {
        "data": data,
        "parallelism": shared_out,
        "epochs": round(trainer.state.epoch, 4),
        "resumed_at_step": start,
        "seconds": round(seconds, 1),  # since then
        "steps_per_second": round((trainer.state.global_step - start) / seconds, 4),
    }


def save_run(trainer: Trainer, run: Any, facts: dict) -> None:
    """Saves weights, tokenizer and run.json. Every process must call it; the first one writes."""
    gates = {name.replace(WRAPPER, ""): whole(gate) for name, gate in trainer.model.gates().items()}
    weights = trainer.accelerator.get_state_dict(trainer.model)  # whole, on the first process
    tensors = list(trainer.model.parameters())  # in parts again, all of them, since `weights` were made
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    out = Path(run.out)
    # Not by `trainer.save_model`: under FSDP that writes a tied weight twice.
    with torch.device("meta"):
        model = NexusForCausalLM(trainer.model.config)
    model.generation_config = trainer.model.generation_config
    weights = {name: tensor for name, tensor in weights.items() if name not in model.all_tied_weights_keys}
    model.save_pretrained(out, state_dict=weights)
    trainer.processing_class.save_pretrained(out)
    arguments, state = trainer.args, trainer.state
    losses = [[entry["step"], entry["loss"]] for entry in state.log_history if "loss" in entry]
    record = {
        "preset": run.preset,
        "arm": run.arm,
        "order": trainer.model.config.attention_order,
        "parameters": sum(tensor.numel() for tensor in tensors),
        "steps": state.global_step,
        "planned_steps": state.max_steps,
        "sequences_per_step": run.sequences,
        "losses": losses,
        "processes": arguments.world_size,
        "gates": {name: gate.item() for name, gate in gates.items()},
        "sharded_tensors": sum(isinstance(tensor, DTensor) for tensor in tensors),
        "precision": "float32 weights, bf16 autocast" if arguments.bf16 else "float32",
        "seed": arguments.seed,
        "learning_rate": arguments.learning_rate,
    }
    save(facts | record | heading(arguments.device.type), out / FILE)
    first, last = losses[0][1], losses[-1][1]
    how = f"{arguments.world_size} processes ({facts['parallelism']})"
    print(f"{state.global_step} steps on {how}: loss {first:.3f} -> {last:.3f}; {out}")
