"""`nexus inspect` from its arguments to the files that it writes."""

import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..bounded import bounded
from ..configuration_nexus import BRANCHES
from ..conversion_scripts.checkpoint.output import staged_output
from ..conversion_scripts.checkpoint.place import check_output, expanded, output_path
from ..conversion_scripts.progress import console
from ..errors import InspectionError
from ..modeling_nexus import NexusPreTrainedModel
from .collect import LayerView, check_size, collect
from .figures import figures, most_changed
from .load import continued, encode, open_gates, open_model, pieces_of
from .page import GENERATOR, page
from .words import spell

PAGES = "a page of nexus inspect"
PAGE = "index.html"
FILES = (PAGE, "overview.png", "gates.png")
SUMMARY = 5  # heads and paths in what is returned


def inspect(
    model: str | Path,
    prompt: str,
    out: str | Path | None = None,
    *,
    chat: bool = False,
    generate: int = 0,
    gates: float | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """
    Runs a Nexus model on `prompt` and writes what its heads attend to, at every level: a page, index.html, and PNGs.

    Args:
        model: a Nexus model's folder, or a Hub id.
        prompt: the text.
        out: folder to write, by default the model's name with "-inspect" in the current folder. An earlier result of
            this function is replaced, anything else never.
        chat: put the prompt into the tokenizer's chat template.
        generate: continue the prompt by at most so many tokens first, greedily.
        gates: set all gates to this value first, in memory only.
        revision: branch, tag or commit, for a Hub id.

    Returns: page and files (where they are), model, tokens, prompt_tokens, causal, inner_attention, refined branches,
        orders, heads, gates, change (per layer and head), the most changed heads, the paths with the largest gains (in
        all, and of a decoder's last token), and notes.

    Raises:
        `InspectionError`: the prompt is no good, or the page would be too large.
        `CheckpointError`: the model cannot be read, or the output folder not written.
    """
    named = expanded(out if out is not None else f"{name_of(model)}-inspect")
    out = output_path(named)
    check_output(out, PAGES, is_our_page, FILES.__contains__)
    loaded, tokenizer = open_model(str(model), revision)
    if gates is not None:
        own = {name: gate.item() for name, gate in loaded.gates().items()}
        open_gates(loaded, gates)
    prompt_ids = encode(loaded, tokenizer, prompt, chat, generate)
    check_size(loaded.config, prompt_ids.shape[1] + generate)
    with console.status("running the model and reading its layers"):
        ids = continued(loaded, prompt_ids, generate)
        views = collect(loaded, ids)
    if not all(math.isfinite(change) for view in views for change in view.change):
        raise InspectionError(
            f"{model}: its attention is not finite, with a weight or a gate that is NaN or too large."
        )
    facts = {
        "model": name_of(model),
        "tokens": bounded(pieces_of, tokenizer, ids[0].tolist(), raises=InspectionError),
        "prompt_tokens": prompt_ids.shape[1],
        "causal": loaded.config.is_causal,
        "gates": gates_of(loaded),
        "gates_set_to": gates,
        "gates_open_in_the_model": None if gates is None else sum(value != 0 for value in own.values()),
        "inner_attention": loaded.config.inner_attention,
        "refined": [branch for branch in BRANCHES if getattr(loaded.config, f"refine_{branch}")],
    }
    notes = []
    try:
        files = figures(facts, views)
    except ImportError:
        files = {}
        notes.append("no PNGs, as matplotlib is not installed (pip install matplotlib)")
    files[PAGE] = page(facts, views).encode()
    check_output(out, PAGES, is_our_page, FILES.__contains__)  # again: running the model took a while
    with staged_output(out) as (folder, _):
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return summary(named, sorted(files), facts, views, notes)


def name_of(model: str | Path) -> str:
    name = Path(model).name
    return name if name not in ("", "..") else Path(model).resolve().name


def is_our_page(folder: Path) -> bool:
    try:
        with (folder / PAGE).open(encoding="utf-8") as stream:
            return GENERATOR in stream.read(2000)
    except (OSError, UnicodeDecodeError):
        return False


def gates_of(model: NexusPreTrainedModel) -> list[dict[str, Any]]:
    """By layer, level that gathered (from 1) and branch."""
    gates = []
    for name, gate in model.gates().items():
        layer, branch, level = re.search(r"layers\.(\d+)\..*\.(\w+)_gate_(\d+)$", name).groups()
        gates.append({"layer": int(layer), "level": int(level), "branch": branch, "value": gate.item()})
    return gates


def summary(
    out: Path, files: list[str], facts: dict[str, Any], views: list[LayerView], notes: list[str]
) -> dict[str, Any]:
    last = len(facts["tokens"]) - 1
    paths = [
        (path, layer, head)
        for layer, view in enumerate(views)
        for head, of_head in enumerate(view.paths)
        for path in of_head
    ]
    paths.sort(key=lambda found: -found[0].gain)

    def described(found: list[tuple]) -> list[dict[str, Any]]:
        return [
            {"layer": layer, "head": head, **asdict(path), "spelled": spell(path, facts["tokens"])}
            for path, layer, head in found[:SUMMARY]
        ]

    return {
        "page": str(out / PAGE),
        "files": [str(out / name) for name in files],
        **facts,
        "orders": [view.order for view in views],
        "heads": len(views[0].change),
        "change": [view.change for view in views],
        "most_changed": [
            {"layer": layer, "head": head, "change": views[layer].change[head]}
            for layer, head in most_changed(views, SUMMARY)
            if views[layer].change[head] > 0
        ],
        "paths": described(paths),
        # nothing is special about the last one of an encoder
        "paths_of_last_token": described([found for found in paths if found[0].query == last and facts["causal"]]),
        "notes": notes,
    }
