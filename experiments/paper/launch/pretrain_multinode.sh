#!/usr/bin/env bash
# Pretrain on several machines: run the same command on each of them. PACKED and OUT must be visible to all.
#   NNODES=2 HOST=node0 PACKED=pile OUT=runs/pythia-1b-nexus experiments/paper/launch/pretrain_multinode.sh
# NNODES machines
# HOST   the name of one of them, which the others can reach
# PORT   a free port there (29500)
# RUN_ID the same on all machines, another for every run at the same time (nexus)
# PRESET, ARM, ORDER, NPROC and further options as in pretrain_torchrun.sh; NPROC counts per machine.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need NNODES "the number of machines"
need HOST "the name of one of the machines"
need PACKED "the folder that pack.sh wrote"
need OUT "the folder of the trained model"
exec "$PYTHON" -m torch.distributed.run --nnodes "$NNODES" --nproc_per_node "${NPROC:-gpu}" \
    --rdzv_backend c10d --rdzv_endpoint "$HOST:${PORT:-29500}" --rdzv_id "${RUN_ID:-nexus}" \
    -m experiments.paper.pretrain --preset "${PRESET:-pythia-1b}" --arm "${ARM:-nexus-qk-shared}" \
    ${ORDER:+--order "$ORDER"} --data "$PACKED" --out "$OUT" "$@"
