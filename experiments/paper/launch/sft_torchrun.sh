#!/usr/bin/env bash
# Fine-tune a converted model on one machine, the whole model on each GPU (DDP). Qwen2.5-1.5B then needs 25 GB per GPU
# for weights, gradients and optimiser (16 bytes per parameter), and its activations beside them.
#   CONVERTED=qwen-nexus-qk OUT=runs/qwen-nexus-qk experiments/paper/launch/sft_torchrun.sh
# PRESET qwen2.5-1.5b (the default), qwen2.5-7b; toy
# ARM    that the model was converted to (nexus-qk)
# DATA   a .jsonl file or a dataset of the Hub; by default open-r1/OpenR1-Math-220k
# NPROC  processes; by default one per GPU
# More options of sft.py may follow. Interrupted, the same command goes on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need CONVERTED "the folder that convert.sh wrote"
need OUT "the folder of the trained model"
exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${NPROC:-gpu}" \
    -m experiments.paper.sft --preset "${PRESET:-qwen2.5-1.5b}" --arm "${ARM:-nexus-qk}" --model "$CONVERTED" --out "$OUT" \
    ${DATA:+--data "$DATA"} "$@"
