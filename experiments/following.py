"""What the experiments that train with Trainer have in common: it tells how far it is, and keeps its losses."""

from transformers import TrainerCallback

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
