#!/usr/bin/env bash
# Convert the model to be retrofitted. Further options of `nexus convert` may follow.
#   CONVERTED=qwen-nexus-qk experiments/paper/launch/convert.sh               # inner layers start random, as in the paper
#   CONVERTED=qwen-ours ARM=ours experiments/paper/launch/convert.sh          # with gates: starts as its source
#   CONVERTED=qwen-standard ARM=standard experiments/paper/launch/convert.sh  # the baseline
# SOURCE a Hub id or a folder (Qwen/Qwen2.5-1.5B)
# ARM    nexus-qk (the default) or another of presets.py
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need CONVERTED "the folder to write"
NEXUS=$(dirname "$(command -v "$PYTHON")")/nexus  # of the environment that the other files use
OPTIONS=$("$PYTHON" -m experiments.paper.presets "${ARM:-nexus-qk}")
# shellcheck disable=SC2086  # several options
exec "$NEXUS" convert "${SOURCE:-Qwen/Qwen2.5-1.5B}" "$CONVERTED" $OPTIONS "$@"
