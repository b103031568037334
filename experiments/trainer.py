"""Transformers' Trainer as the experiments use it: it saves nothing, prints nothing and keeps its losses."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from .runs import Advance


class Follow(TrainerCallback):
    """`curve` is [[step, training loss], ...], at the steps that Trainer logs."""

    def __init__(self, advance: Advance):
        self.advance, self.curve = advance, []

    def on_step_end(self, args, state, control, **kwargs):
        self.advance(state.global_step / state.max_steps)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.curve.append([state.global_step, round(float(logs["loss"]), 4)])


@contextmanager
def silent_trainer(model: nn.Module, run: dict, advance: Advance, arguments: dict, **options) -> Iterator[tuple]:
    """
    Yields a Trainer and the curve that it fills.

    Args:
        run: Settings with "steps" and "seed".
        arguments: Further TrainingArguments.
        options: Of Trainer.
    """
    follow = Follow(advance)
    with tempfile.TemporaryDirectory() as folder:
        common = {"max_steps": run["steps"], "seed": run["seed"], "save_strategy": "no", "report_to": "none"}
        common |= {"use_cpu": True, "dataloader_pin_memory": False, "disable_tqdm": True}
        training = TrainingArguments(output_dir=folder, **common, **arguments)
        trainer = Trainer(model=model, args=training, callbacks=[follow], **options)
        trainer.remove_callback(PrinterCallback)
        yield trainer, follow.curve
