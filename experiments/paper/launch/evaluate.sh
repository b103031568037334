#!/usr/bin/env bash
# Score a trained model with lm-eval, one process per GPU, and fill the table.
#   MODEL=runs/pythia-70m-nexus GROUP=pretraining experiments/paper/launch/evaluate.sh
#   MODEL=runs/qwen-nexus-qk GROUP=reasoning experiments/paper/launch/evaluate.sh
# NPROC   processes; by default one per GPU
# RESULTS folder of the scores (experiments/paper/results)
# TABLE   the table (experiments/paper/PAPER.md)
# More options of evaluate.py may follow.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need MODEL "the folder of a trained model"
need GROUP "pretraining or reasoning"
PAPER=$ROOT/experiments/paper
RESULTS=${RESULTS:-$PAPER/results}
"$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${NPROC:-gpu}" \
    -m experiments.paper.evaluate "$MODEL" --group "$GROUP" --results "$RESULTS" "$@"
exec "$PYTHON" -m experiments.paper.table --results "$RESULTS" --out "${TABLE:-$PAPER/PAPER.md}"
