# Sourced by the other files of this folder. They may be started from anywhere; paths are relative to where you are.
set -euo pipefail
PYTHON=${PYTHON:-python}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

# need NAME EXPLANATION: ends with one sentence if the variable is not set.
need() {
    if [ -z "${!1:-}" ]; then
        echo "$(basename "$0"): set $1, $2." >&2
        exit 2
    fi
}
