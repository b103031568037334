import sys
from pathlib import Path

# `experiments` is no part of the package: it is imported from the repository root, as `python -m experiments` does.
sys.path.append(str(Path(__file__).parents[2]))
