"""
All experiments one after another: `make evidence` (resumes where it was), or `make evidence-quick` (toy sizes).
"""

import importlib

from . import page
from .runs import parse

NAMES = ["recall", "hops", "rank", "scale", "arms", "forms", "window", "chains", "encoder", "retrofit_forms"]
NAMES += ["language", "gates", "retrofit"]  # whose runs are of version 0.1's form

if __name__ == "__main__":
    options = parse(__doc__, NAMES)
    for name in options.names or NAMES:
        importlib.import_module(f"experiments.{name}").main(options)
    if not options.quick:
        page.main()
