"""Tokens and paths in words. The page has the same rules in data.js and tokens.js."""

import re

from .paths import Path

MAX_LABEL = 14


def label(token: str) -> str:
    """A token where space is short: what cannot be seen made visible, one leading space left out."""
    token = token.replace("\n", "⏎").replace("\t", "⇥")
    token = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", token)
    token = token.strip(" ") or "␣" * len(token)
    return token if len(token) <= MAX_LABEL else token[: MAX_LABEL - 1] + "…"


def spell(path: Path, tokens: list[str]) -> str:
    """As in: "A"(9) → "B"(3), whose key was gathered from "A"(2) (0.93)."""

    def name(token: int) -> str:
        return f'"{label(tokens[token])}"({token})'

    text = f"{name(path.query)} → {name(path.target)}"
    if not path.chains:
        return text + ", which no single token explains"
    first, *further = path.chains[0]
    gathered = f"{name(first.token)} ({first.weight:.2f})"
    for hop in further:
        found = f"{'its' if hop.branch == 'key' else 'a'} {hop.inner or hop.branch}"
        gathered += f", which is found through {found}, gathered from {name(hop.token)} ({hop.weight:.2f})"
    if first.branch == "key":
        return f"{text}, whose key was gathered from {gathered}"
    return f"{name(path.query)}, whose query was gathered from {gathered}, → {name(path.target)}"
