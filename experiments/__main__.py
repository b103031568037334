"""
All experiments one after another: `make evidence` (resumes where it was), or `make evidence-quick` (toy sizes).
"""

import importlib

from . import page
from .runs import parse

NAMES = ["scale", "recall", "hops", "rank", "language", "forms", "window", "encoder", "chains", "gates", "retrofit"]
NAMES += ["arms", "retrofit_forms"]

if __name__ == "__main__":
    options = parse(__doc__, NAMES)
    for name in options.names or NAMES:
        importlib.import_module(f"experiments.{name}").main(options)
    if not options.quick:
        page.main()
