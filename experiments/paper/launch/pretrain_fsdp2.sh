#!/usr/bin/env bash
# Pretrain with the model sharded over the GPUs (FSDP2), through accelerate.
#   PACKED=pile OUT=runs/pythia-1b-nexus PRESET=pythia-1b experiments/paper/launch/pretrain_fsdp2.sh
# PRESET, ARM, ORDER, more options: see pretrain_torchrun.sh; NPROC, NNODES, NODE_RANK, HOST, PORT: see accelerate_fsdp2.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$ROOT/experiments/paper/launch/accelerate_fsdp2.sh"
need PACKED "the folder that pack.sh wrote"
need OUT "the folder of the trained model"
fsdp2 experiments.paper.pretrain --preset "${PRESET:-pythia-1b}" --arm "${ARM:-nexus-qk-shared}" \
    ${ORDER:+--order "$ORDER"} --data "$PACKED" --out "$OUT" "$@"
