"""
How a pretrained model takes the forms of inner attention before any training: `python -m experiments gates`.

SmolLM2-135M-Instruct is converted (order 2, every layer) and all its gates are set by hand. Measured is the loss on
Python's documentation, which the interpreter has within it, with and without W_O between the levels, and with and
without the inner scale. With `--quick` a tiny random Llama takes its place.
"""

from argparse import Namespace
from pydoc_data.topics import topics

import torch
from transformers import AutoTokenizer

from common.texts import CACHE
from nexus_transformers import NexusForCausalLM

from .converted import convert
from .runs import Advance, Experiment

BUDGET = 0.3  # CPU hours
GATES = [0.02, 0.05, 0.1]
SOURCE = "source"
FORMS = {
    SOURCE: {"attention_order": 1},
    "Eq. 12": {},
    "Eq. 12, no scale": {"inner_scale": False},
    "Eq. 12 with W_O": {"inner_output_projection": True},
    "Eq. 12 with W_O, no scale": {"inner_output_projection": True, "inner_scale": False},
}
ROWS, LENGTH = 4, 512  # tokens
FOLDER = CACHE / "evidence" / "gates"


def one_run(run: dict, advance: Advance) -> dict:
    folder = FOLDER / run["model"] / "model"
    model = NexusForCausalLM.from_pretrained(folder, **FORMS[run["form"]]).eval()
    for gate in model.gates().values():
        gate.data.fill_(run["gate"])
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(text)["input_ids"])
    blocks = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    chosen = blocks[torch.linspace(0, len(blocks) - 1, ROWS).long()]  # spread over all of it
    with torch.no_grad():
        losses = [model(row[None], labels=row[None]).loss.item() for row in chosen]
    return {"loss": sum(losses) / len(losses)}  # nats per token


def main(options: Namespace) -> dict:
    experiment = Experiment("gates", BUDGET, options, one_run)
    name = "toy" if options.quick else "smollm2"
    convert(name, FOLDER / name)
    wanted = [
        {"model": name, "form": form, "gate": gate, "seed": 0}
        for form in FORMS
        for gate in ([0.0] if form == SOURCE else GATES)
    ]
    records = experiment.run("gates by hand", wanted)
    summary: dict = {}
    for record in records:
        form, gate = record["settings"]["form"], record["settings"]["gate"]
        summary.setdefault(form, {})[str(gate)] = round(record["result"]["loss"], 4)
    return experiment.finish(summary)
