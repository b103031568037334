"""The page: template, style, scripts and data in one file that opens from the disk and asks no network for anything."""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from .collect import LayerView

TEMPLATE = Path(__file__).parent / "page"
SCRIPTS = ("data.js", "maps.js", "overview.js", "tokens.js", "gates.js", "main.js")
GENERATOR = '<meta name="generator" content="nexus inspect">'  # by which a page of ours is known again


def page(facts: dict[str, Any], views: list[LayerView]) -> str:
    """
    Args:
        facts: what is said in words: model, tokens, gates, notes (see run.py).
        views: the layers, in their order.
    """
    content = {
        **facts,
        "orders": [view.order for view in views],
        "heads": len(views[0].change),
        "change": [[round(change, 4) for change in view.change] for view in views],
        "paths": [[[packed(path) for path in paths] for paths in view.paths] for view in views],
    }
    maps = np.concatenate([view.maps.ravel() for view in views]).astype("<u2").tobytes()
    parts = {
        "generator": GENERATOR,
        "title": html.escape(facts["model"]),
        "style": read("page.css"),
        "data": json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        "maps": base64.b64encode(maps).decode(),
        "scripts": "\n".join(read(name) for name in SCRIPTS),
    }
    # In one pass: what is put in, the user's text among it, is not searched for marks.
    return re.sub(r"@(\w+)@", lambda mark: parts[mark[1]], read("page.html"))


def packed(path) -> list:
    """What data.js unpacks."""
    chains = [
        [[hop.branch, hop.level, hop.token, hop.head, round(hop.weight, 4), round(hop.credit, 3)] for hop in chain]
        for chain in path.chains
    ]
    return [path.query, path.target, round(path.gain, 4), chains]


def read(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")
