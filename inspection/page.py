"""The page: template, style, scripts and data in one file that opens from the disk and asks no network for anything."""

import base64
import html
import json
import re
import zlib
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
        "maps": [[(maps.level, maps.branch, len(maps.cells)) for maps in view.maps] for view in views],
        "heads": len(views[0].change),
        "change": [[round(change, 4) for change in view.change] for view in views],
    }
    paths = [[[packed(path) for path in paths] for paths in view.paths] for view in views]
    parts = {
        "generator": GENERATOR,
        "title": html.escape(facts["model"]),
        "style": read("page.css"),
        "data": json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        "maps": deflated(bytes_of_maps(views), zlib.Z_RLE),  # to look for more than runs takes ten times as long
        "paths": deflated(json.dumps(paths, separators=(",", ":")).encode()),
        "scripts": "\n".join(read(name) for name in SCRIPTS),
    }
    # In one pass: what is put in, the user's text among it, is not searched for marks.
    return re.sub(r"@(\w+)@", lambda mark: parts[mark[1]], read("page.html"))


def bytes_of_maps(views: list[LayerView]) -> bytes:
    """
    All low bytes, then all high bytes, which are 0 but for weights above 0.255. Maps hold their difference to those of
    the same branch before them, byte by byte, modulo 256: they are alike, so that much of it is 0, which packs well.
    """
    differences = []
    for view in views:
        before = {}
        for maps in view.maps:
            split = maps.cells.astype("<u2").view(np.uint8).reshape(*maps.cells.shape, 2)
            differences.append(split - before.get(maps.branch, np.uint8(0)))
            before[maps.branch] = split
    return b"".join(maps[..., byte].tobytes() for byte in (0, 1) for maps in differences)


def deflated(content: bytes, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> str:
    """In zlib's format and base64."""
    packer = zlib.compressobj(strategy=strategy)
    return base64.b64encode(packer.compress(content) + packer.flush()).decode()


def packed(path) -> list:
    """What data.js unpacks, with the decimals that the page prints."""
    chains = [
        [
            [hop.branch, hop.level, hop.token, hop.head, round(hop.weight, 2), round(hop.credit, 1)]
            + ([hop.inner] if hop.inner else [])
            for hop in chain
        ]
        for chain in path.chains
    ]
    return [path.query, path.target, round(path.gain, 3), chains]


def read(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")
