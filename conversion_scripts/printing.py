"""What the `nexus` command prints when it is done, for people and for machines."""

import json
from pathlib import Path
from typing import Any

from ..errors import shown

LIMIT = 4000  # characters of a line; lists of files are cut, `--json` has them whole


def say(text: str) -> None:
    """Prints one line. Whatever stands in it, names of files and tensors and what the Hub says, is only text."""
    print(shown(text, LIMIT))


def print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2))  # in ASCII: every other character is escaped


def print_report(report: dict[str, Any], out: Path) -> None:
    model = report["model"]
    if report.get("unchanged"):
        say(f"{out} is already complete: every file of source and result has the hash that it had. Nothing to do.")
    if report.get("resumed"):
        say(f"Continued an interrupted run: {len(report['resumed'])} of {len(model['shards'])} shards were there.")
    if "attention_order" in model:
        what = f"order {model['attention_order']}, {model['parameters']:,} parameters, of them {added(model)}"
    else:
        what = f"a {report['options']['to_source']} model, {model['parameters']:,} parameters"
    say(f"{report['source']['name']} -> {out}: {what}, {model['dtype']}, {size(model['bytes'])}.")
    if model.get("refined"):
        say(f"Inner attention: {nesting(model)}.")
    if wrapper := report["source"].get("language_model_of"):
        say(f"Note: of this {wrapper} the language model alone was taken; what reads images was left.")
    for warning in report.get("tokenizer", {}).get("warnings", []):
        say(f"Note: {warning}")
    if "verification" in report:
        print_verification(report["verification"])
    else:
        say("Not verified (--no-verify).")


def print_verification(figures: dict[str, Any]) -> None:
    controls = "; ".join(f"{what}: {value:.3g}" for what, value in figures["negative_controls"].items())
    allowed = f" (allowed {figures['tolerance']:.3g}: the source rounds otherwise)" if figures["tolerance"] else ""
    difference = f"{figures['max_abs_logit_difference']:.3g}" if figures["max_abs_logit_difference"] else "0.0"
    how = ", layer by layer" if figures["layer_by_layer"] else ""
    say(
        f"Verified in a fresh process{how} at order {figures['compared_at_order']}, {figures['attn_implementation']}, "
        f"{figures['dtype']}: max |Δlogit| {difference}{allowed}, KL "
        f"{figures['mean_kl']:.3g} over {figures['positions']} tokens, "
        f"{'greedy continuation equal, ' if 'greedy_equal' in figures else ''}"
        f"{figures['identical_tensors']} tensors identical."
    )
    say(f"Negative controls, which must differ: {controls or 'none, as there is no gate, and one head only'}.")
    for note in notes(figures):
        say(f"Note: {note}")


def notes(figures: dict[str, Any]) -> list[str]:
    """What the check left out, or found besides."""
    found = []
    if opened := figures.get("gates_closed_in_memory"):  # a report may be older
        found.append(f"{opened} gates are open; they were closed for this comparison.")
    found += [f"not compared: {what}." for what in figures["skipped"]]
    found += [f"no passage is longer than {name}: that would take too long here." for name in figures["not_run_past"]]
    if figures["not_finite"]:
        found.append(f"{figures['not_finite']} logits are infinite or NaN, in the same places on both sides.")
    if figures["other_settings"]:
        found.append(f"it generates with other settings than its source: {', '.join(figures['other_settings'])}.")
    return found


def print_plan(plan: dict[str, Any], out: Path) -> None:
    source, model, disk = plan["source"], plan["model"], plan["disk"]
    lines = {
        "source": f"{source['name']}, {what_of(source)}, {source['parameters']:,} parameters in "
        f"{source['shards']} files, {size(source['bytes'])}"
        + (f", revision {source['revision']}" if source["revision"] else ""),
        "result": f"{out}, {model['parameters']:,} parameters ({added(model)}) in {model['shards']} files",
        "nesting": nesting(model) if model.get("refined") else "none",
        "options": ", ".join(f"{name} {value}" for name, value in plan["options"].items() if name != "code"),
        "memory": plan["memory"],
        "disk": f"{size(disk['needed_bytes'])} needed, {size(disk['free_bytes'])} free",
        "carried over": ", ".join(plan["carried_over"]) or "nothing",
        "left behind": ", ".join(plan["left_behind"]) or "nothing",
        "unknown": ", ".join(plan["unknown"]) or "nothing",
    }
    say("Nothing was written. This is what would be done:")
    for name, line in lines.items():
        say(f"  {name:13} {line}")


def what_of(source: dict[str, Any]) -> str:
    wrapper = source.get("language_model_of")
    return source["model_type"] if wrapper is None else f"{source['model_type']}, the language model alone of {wrapper}"


def print_push(result: dict[str, Any]) -> None:
    files, dry_run = result["files"], result.get("dry_run", False)
    total = size(sum(description["bytes"] for description in files.values()))
    if dry_run:
        state = "exists" if result["exists"] else "does not exist and would be made"
        kind = "private" if result["private"] else "public"
        say(f"Nothing was sent. {result['url']} {state} ({kind}). These {len(files)} files, {total}, would be:")
        for name, description in files.items():
            say(f"  {description['bytes']:>14,}  {name}")
    elif result["unchanged"]:
        say(f"{result['url']} already holds exactly this, as commit {result['commit']}: nothing was uploaded.")
    else:
        say(f"Uploaded {len(files)} files, {total}, to {result['url']} as commit {result['commit']}.")
    for label, names in (("Left out", result["left_out"]), ("Deleted there", result["deleted"])):
        if names:
            say(f"{label}: {', '.join(names)}.")
    for note in result["notes"]:
        say(f"Note: {note}.")
    if not dry_run:
        figures = result["verification"]
        outputs = (
            f"outputs equal at {figures['positions']} positions"
            if "positions" in figures
            else "outputs not compared, as the model does not fit in memory"
        )
        say(
            f"Downloaded again and loaded in a fresh process: {figures['files']} files with equal sha256, config "
            f"{'and tokenizer ' if figures['tokenizer'] else ''}equal, {outputs}."
        )


def added(model: dict[str, Any]) -> str:
    """The parameters that it has beyond its source."""
    inner = f" and {model['inner_parameters']:,} of inner layers drawn at random" if model["inner_parameters"] else ""
    return f"{model['gates']} gates{inner}"


def nesting(model: dict[str, Any]) -> str:
    projection = "with" if model["inner_output_projection"] else "without"
    return (
        f"{model['inner_attention']}, refines {', '.join(model['refined'])}, {projection} W_O between the levels "
        f"({model['inner_output_projection_because']})"
        + ("" if model["inner_scale"] else ", no inner scale")
        + (f", inner levels see {model['inner_window']} tokens" if model["inner_window"] else "")
    )


def size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
