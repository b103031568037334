"""
`nexus inspect`: what every head of a Nexus model attends to at every level, as one HTML page and PNGs.

A straight line: load.py (model, tokenizer, prompt) -> collect.py (one forward pass; credits.py explains what is newly
attended) -> page.py and figures.py (bytes) -> the output folder, which run.py writes at the end, whole.
"""

from .run import inspect

__all__ = ["inspect"]
