"""What `nexus inspect` prints when it is done."""

from typing import Any

from ..conversion_scripts.printing import say

PATHS = 3


def print_inspection(result: dict[str, Any]) -> None:
    orders = sorted(set(result["orders"]))
    tokens, layers = count(len(result["tokens"]), "token"), count(len(result["orders"]), "layer")
    say(
        f"{result['page']}: {tokens}, {layers} of {count(result['heads'], 'head')}, attention order "
        f"{' and '.join(map(str, orders))}. Open it in a browser."
    )
    others = [file for file in result["files"] if file != result["page"]]
    if others:
        say(f"Figures: {', '.join(others)}.")
    if result["most_changed"]:
        heads = (
            f"layer {each['layer']} head {each['head']} {share(each['change'])}" for each in result["most_changed"]
        )
        say(f"Share of its attention that refining moves: {', '.join(heads)}.")
    elif orders == [1]:
        say("All layers are of order 1: there is one level, and nothing is refined.")
    elif result["gates"] and not any(gate["value"] for gate in result["gates"]):
        remedy = (
            " Train them, or see what open ones would do: --open-gates 0.05." if result["gates_set_to"] is None else ""
        )
        say(f"All gates are closed, so every head attends as if nothing were refined.{remedy}")
    else:
        say("Every head attends as if nothing were refined.")
    # Those of the last token have a part in what the model says next.
    for path in (result["paths_of_last_token"] or result["paths"])[:PATHS]:
        say(f"Layer {path['layer']} head {path['head']}: {path['spelled']} ({path['gain']:+.2f}).")
    for note in result["notes"]:
        say(f"Note: {note}.")


def share(change: float) -> str:
    return f"{change:.2f}" if change >= 0.005 else "<0.01"


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
