"""What a finished training run leaves beside its weights: run.json, which the evaluation and the table read."""

import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch
import transformers
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from nexus_transformers import NexusForCausalLM

FILE = "run.json"
WRAPPER = "_checkpoint_wrapped_module."  # which FSDP puts into names where it recomputes activations


def set_accumulation(training: transformers.TrainingArguments, sequences: int, program: str) -> None:
    """As many passes per step as make `sequences` of what all processes take in one pass."""
    at_once = training.per_device_train_batch_size * training.world_size
    if sequences % at_once:
        sys.exit(
            f"{program}: {sequences} sequences per step cannot be made of {training.world_size} processes with "
            f"{training.per_device_train_batch_size} each; change --sequences or --per_device_train_batch_size."
        )
    training.gradient_accumulation_steps = sequences // at_once


def last_checkpoint(training: transformers.TrainingArguments) -> str | None:
    """Where an interrupted run left off."""
    return get_last_checkpoint(training.output_dir) if os.path.isdir(training.output_dir) else None


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


def save_weights(trainer: Trainer, state: dict[str, torch.Tensor], out: Path) -> None:
    """
    The model folder. Not by `trainer.save_model`: under FSDP that writes a tied weight twice.
    """
    with torch.device("meta"):
        model = NexusForCausalLM(trainer.model.config)
    model.generation_config = trainer.model.generation_config
    state = {name: tensor for name, tensor in state.items() if name not in model.all_tied_weights_keys}
    model.save_pretrained(out, state_dict=state)
    trainer.processing_class.save_pretrained(out)


def save_run(trainer: Trainer, output: TrainOutput, out: Path, start: int, sequences: int, facts: dict) -> None:
    """Saves weights, tokenizer and run.json. Every process must call it; the first one writes."""
    gates = {name.replace(WRAPPER, ""): whole(gate) for name, gate in trainer.model.gates().items()}
    shared_out = parallelism(trainer)
    state = trainer.accelerator.get_state_dict(trainer.model)  # whole, on the first process
    tensors = list(trainer.model.parameters())  # in parts again, all of them, since `state` was made
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    save_weights(trainer, state, out)
    config = trainer.model.config
    steps, seconds = trainer.state.global_step, output.metrics["train_runtime"]
    device = trainer.args.device
    losses = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    record = facts | {
        "order": config.attention_order,
        "parameters": sum(tensor.numel() for tensor in tensors),
        "steps": steps,
        "planned_steps": trainer.state.max_steps,
        "sequences_per_step": sequences,
        "losses": losses,
        "resumed_at_step": start,
        "seconds": round(seconds, 1),  # since then
        "steps_per_second": round((steps - start) / seconds, 4),
        "processes": trainer.args.world_size,
        "parallelism": shared_out,
        "gates": {name: gate.item() for name, gate in gates.items()},
        "sharded_tensors": sum(isinstance(tensor, DTensor) for tensor in tensors),
        "precision": "float32 weights, bf16 autocast" if trainer.args.bf16 else "float32",
        "seed": trainer.args.seed,
        "learning_rate": trainer.args.learning_rate,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    (out / FILE).write_text(json.dumps(record, indent=1) + "\n")
    first, last = losses[0][1], losses[-1][1]
    print(f"{steps} steps on {trainer.args.world_size} processes ({shared_out}): loss {first:.3f} -> {last:.3f}; {out}")
