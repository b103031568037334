#!/usr/bin/env bash
# Tokenize and pack the text, once for all runs with the same tokenizer.
#   PACKED=pile experiments/paper/launch/pack.sh
# DATA      a file, a folder or a dataset of the Hub   (EleutherAI/the_pile_deduplicated)
# TOKENIZER a Hub id or a folder                       (EleutherAI/pythia-70m)
# TOKENS    how many at most                           (15.1e9; 300e9 for the whole of Pythia's training)
# LENGTH    tokens per row                             (2048)
# More options of pack.py may follow.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need PACKED "the folder to write"
exec "$PYTHON" -m experiments.paper.pack "${DATA:-EleutherAI/the_pile_deduplicated}" "$PACKED" \
    --tokenizer "${TOKENIZER:-EleutherAI/pythia-70m}" --tokens "${TOKENS:-15.1e9}" --length "${LENGTH:-2048}" "$@"
