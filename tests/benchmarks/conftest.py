import sys
from pathlib import Path

# `benchmarks` is no part of the package: it is imported from the repository root, as `python -m benchmarks.speed` does.
sys.path.append(str(Path(__file__).parents[2]))
