r"""
Pretrain a Nexus model from scratch on a text file with Trainer: on one process, one machine or several.

    python examples/pretrain_distributed.py TEXT_FILE OUT_FOLDER --tokenizer HuggingFaceTB/SmolLM2-135M

One process per GPU; without GPUs it runs on the CPU. `--batch` counts per process. One machine, here with 2 GPUs, and
then two machines of 8 GPUs, where the same command runs on each, and HOST is the name of one of them:

    torchrun --standalone --nproc_per_node 2 examples/pretrain_distributed.py TEXT_FILE OUT_FOLDER --tokenizer TOKENIZER
    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_id nexus --rdzv_endpoint HOST:29500 \
        examples/pretrain_distributed.py TEXT_FILE OUT_FOLDER --tokenizer TOKENIZER

The same with accelerate (GPUs only; RANK is 0 on HOST and 1 on the other machine):

    accelerate launch --multi_gpu --num_processes 2 examples/pretrain_distributed.py TEXT_FILE OUT_FOLDER ...
    accelerate launch --multi_gpu --num_machines 2 --num_processes 16 --machine_rank RANK --main_process_ip HOST \
        --main_process_port 29500 examples/pretrain_distributed.py TEXT_FILE OUT_FOLDER ...

For models that do not fit on one GPU, FSDP2 shards each decoder layer: put these in place of --multi_gpu.

    --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_state_dict_type FULL_STATE_DICT

The tests run the first torchrun command, on the CPU; those of accelerate need GPUs and are not tested.

To fine-tune a converted model on one process, see `examples/finetune.py`.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

from nexus_transformers import NexusConfig, NexusForCausalLM
from nexus_transformers.tokenization import config_fields


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", required=True, help="a Hub id or a folder")
    parser.add_argument("--config", type=json.loads, default={}, help='fields of NexusConfig, e.g. {"num_layers": 12}')
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--length", type=int, default=512, help="tokens per block")
    parser.add_argument("--batch", type=int, default=8, help="blocks per step and process")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--checkpointing", action="store_true", help="recompute the layers' activations: saves memory")
    args = parser.parse_args()

    # First of all: it starts the process group, by what torchrun or accelerate left in the environment.
    training = TrainingArguments(
        output_dir=str(args.out / "trainer"),
        use_cpu=not torch.accelerator.is_available(),  # unsaid, each process would train alone on the CPU
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=args.steps // 20,
        weight_decay=0.1,
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        gradient_checkpointing=args.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,  # every parameter takes part in every step
        logging_steps=max(1, args.steps // 100),
        save_steps=max(1, args.steps // 4),
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    set_seed(0)  # every process makes the same weights
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    ids = tokenizer(args.text.read_text(encoding="utf-8"))["input_ids"]
    blocks = [ids[i : i + args.length] for i in range(0, len(ids) - args.length + 1, args.length)]

    fields = config_fields(tokenizer) | {"max_position_embeddings": max(8192, args.length)}
    model = NexusForCausalLM(NexusConfig(**fields | args.config))
    trainer = Trainer(model, training, train_dataset=[{"input_ids": block, "labels": block} for block in blocks])
    trainer.train()
    trainer.save_model(str(args.out))  # of all processes, by the first
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(args.out)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        result = {"processes": training.world_size, "steps": trainer.state.global_step, "losses": losses}
        (args.out / "pretrain.json").write_text(json.dumps(result, indent=2) + "\n")
        print(f"{training.world_size} processes: loss {losses[0]:.3f} -> {losses[-1]:.3f} nats/token")


if __name__ == "__main__":
    main()
