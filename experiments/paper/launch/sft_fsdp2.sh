#!/usr/bin/env bash
# Fine-tune a converted model, sharded over the GPUs (FSDP2), through accelerate.
#   PRESET=qwen2.5-7b CONVERTED=qwen-nexus-qk OUT=runs/qwen-nexus-qk experiments/paper/launch/sft_fsdp2.sh
# PRESET, ARM, DATA, more options: see sft_torchrun.sh; NPROC, NNODES, NODE_RANK, HOST, PORT: see accelerate_fsdp2.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$ROOT/experiments/paper/launch/accelerate_fsdp2.sh"
need CONVERTED "the folder that convert.sh wrote"
need OUT "the folder of the trained model"
# FSDP recomputes the activations (fsdp2.yaml), so Trainer must not.
fsdp2 experiments.paper.sft --preset "${PRESET:-qwen2.5-7b}" --arm "${ARM:-nexus-qk}" --model "$CONVERTED" --out "$OUT" \
    ${DATA:+--data "$DATA"} --gradient_checkpointing false "$@"
