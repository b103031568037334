"""Gates while they train: a callback of Trainer that logs them, to whatever Trainer reports to."""

import re
from typing import TYPE_CHECKING

from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer


class GateCallback(TrainerCallback):
    """
    Logs the gates of a Nexus model whenever Trainer logs a loss: `gates/mean` and `gates/largest`, of their absolute
    values, and each gate, such as `gates/layer_0/query_1`, for level 1. The single ones are left out where
    Trainer reports to no service (`report_to="none"`); with one, Trainer prints them, too.

        trainer.add_callback(GateCallback(trainer))

    A model without gates logs nothing. Under PEFT the gates are those of the active adapter.
    """

    def __init__(self, trainer: "Trainer"):
        self.trainer = trainer

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if "loss" not in logs:  # an evaluation, the summary at the end, or what is logged here
            return
        gates = gate_values(model)
        if gates:
            sizes = [abs(gate) for gate in gates.values()]
            metrics = {"gates/mean": sum(sizes) / len(sizes), "gates/largest": max(sizes)}
            # Not the `log` of a subclass: TRL's also log, at each call, what they have gathered.
            from transformers import Trainer  # takes a second to import

            Trainer.log(self.trainer, metrics | (gates if args.report_to else {}))


def gate_values(model) -> dict[str, float]:
    """Every gate by its short name. Under FSDP2 a gate lies on one process, and all have to call this."""
    gates = {short_name(name): gate.detach() for name, gate in model.gates().items()}
    whole = {name: gate.full_tensor() if hasattr(gate, "full_tensor") else gate for name, gate in gates.items()}
    return {name: gate.item() for name, gate in whole.items()}


def short_name(name: str) -> str:
    """`...model.layers.0.self_attn.inner_norm.query_gate_1` -> `gates/layer_0/query_1`."""
    return re.sub(r".*layers\.(\d+)\..*?(\w+)_gate_(\d+)", r"gates/layer_\1/\2_\3", name)
