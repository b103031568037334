#!/usr/bin/env bash
# Pretrain on one machine, one process per GPU, the whole model on each (DDP): enough for all four Pythia shapes.
#   PACKED=pile OUT=runs/pythia-70m-nexus experiments/paper/launch/pretrain_torchrun.sh
# PRESET pythia-70m (the default), pythia-160m, pythia-410m, pythia-1b; toy
# ARM    nexus-qk-shared (the default), nexus-recursive, nexus-q, nexus-qk, nexus-qkv, eq7; standard is the baseline
# ORDER  in place of the arm's, for all layers or one per layer, as in 2,1,1,1,1,1
# NPROC  processes; by default one per GPU
# More options of pretrain.py may follow. Interrupted, the same command goes on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need PACKED "the folder that pack.sh wrote"
need OUT "the folder of the trained model"
exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${NPROC:-gpu}" \
    -m experiments.paper.pretrain --preset "${PRESET:-pythia-70m}" --arm "${ARM:-nexus-qk-shared}" \
    ${ORDER:+--order "$ORDER"} --data "$PACKED" --out "$OUT" "$@"
