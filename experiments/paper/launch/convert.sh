#!/usr/bin/env bash
# Convert the model to be retrofitted. Further options of `nexus convert` may follow.
#   CONVERTED=qwen-nexus experiments/paper/launch/convert.sh --no-gate    # nested at once, as in the paper
#   CONVERTED=qwen-gates experiments/paper/launch/convert.sh              # with gates: starts as its source
#   CONVERTED=qwen-standard ORDER=1 experiments/paper/launch/convert.sh   # the baseline
# SOURCE a Hub id or a folder (Qwen/Qwen2.5-1.5B)
# ORDER  2 by default
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need CONVERTED "the folder to write"
NEXUS=$(dirname "$(command -v "$PYTHON")")/nexus  # of the environment that the other files use
exec "$NEXUS" convert "${SOURCE:-Qwen/Qwen2.5-1.5B}" "$CONVERTED" --order "${ORDER:-2}" "$@"
