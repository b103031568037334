"""The comparisons of the forms of inner attention, at toy size; test_experiments.py has what is committed of them."""

import importlib
from argparse import Namespace

import pytest
import torch

from experiments import forms


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forms", "window", "gates"])
def test_at_toy_size(name, tmp_path):
    report = importlib.import_module(f"experiments.{name}").main(Namespace(out=tmp_path, workers=1, quick=True))
    assert report["finished"] and report["summary"] and report["cpu_hours"] < 0.1


def test_rotation_once_and_at_each_level_are_one_function_without_positions():
    """With cos = 1 and sin = 0; with positions they differ."""
    ids = torch.arange(12)[None]
    models = []
    for form in ("self, rotated once", "self, rotated at each level"):
        torch.manual_seed(0)
        models.append(forms.build("recall", form, 1).eval())
    one, other = (model(ids, use_cache=False).logits for model in models)
    assert (one - other).abs().max() > 1e-4
    for model in models:
        model.model.rotary_emb.inv_freq.zero_()
    one, other = (model(ids, use_cache=False).logits for model in models)
    torch.testing.assert_close(one, other)
