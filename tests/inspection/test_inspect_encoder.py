"""`nexus inspect` of an encoder: whole maps, later tokens too, in files, pictures and in a browser."""

from pathlib import Path

import numpy as np
import pytest
import torch
from page_data import attentions_of, data_of, unrefined_of

import checkpoints
from nexus_transformers import NexusConfig, NexusForMaskedLM
from nexus_transformers.errors import InspectionError
from nexus_transformers.inspection import inspect
from nexus_transformers.inspection.collect import MAX_CELLS, check_size, collect
from nexus_transformers.inspection.figures import maps_of_head

PROMPT = "An exception is raised by the class."
ARMS = {
    "shared": {},
    "window": {"inner_window": 2},
    "separate": {"inner_attention": "separate"},
    "self": {"inner_attention": "self"},
}


@pytest.mark.parametrize("arm", ARMS)
def test_the_page_holds_whole_maps(arm, save_nexus, inspected, kept):
    folder, ids = (
        save_nexus(NexusForMaskedLM, is_causal=False, **ARMS[arm]),
        checkpoints.tokenizer()(PROMPT)["input_ids"],
    )
    result = inspected(folder)
    data, maps = data_of(result["page"])
    assert data["causal"] is False
    calls, unrefined = attentions_of(folder, ids), unrefined_of(folder, ids)
    for layer in range(2):
        np.testing.assert_allclose(maps[layer][-len(calls[layer]) :], kept(calls[layer]), atol=1e-6)
        if arm != "window":
            np.testing.assert_allclose(maps[layer][0], kept(unrefined[layer]), atol=1.1e-3)
        assert np.triu(maps[layer][-1], 1).max() > 0.05, "later tokens are looked at"
    assert result["paths"] and result["paths_of_last_token"] == []
    assert any(path["target"] > path["query"] for path in result["paths"])


def test_the_command_draws_it_and_generates_nothing(save_nexus, nexus, tmp_path):
    folder = save_nexus(NexusForMaskedLM, is_causal=False)
    status, output, errors = nexus("inspect", folder, PROMPT, "--out", tmp_path / "out")
    assert status == 0 and " → " in output, errors
    assert (tmp_path / "out" / "overview.png").exists()
    with pytest.raises(InspectionError, match="a NexusForMaskedLM cannot continue a text"):
        inspect(folder, PROMPT, tmp_path / "more", generate=3)


def test_nothing_of_a_picture_is_left_white(save_nexus):
    model = NexusForMaskedLM.from_pretrained(save_nexus(NexusForMaskedLM, is_causal=False), attn_implementation="eager")
    view = collect(model.eval(), torch.arange(9)[None])[0]
    for (_, pixels), maps in zip(maps_of_head(view, 0, head=1), view.maps, strict=False):
        weights = maps.weights(1, 4)
        assert weights.shape == (9, 9) and weights.sum(-1) == pytest.approx(1, abs=0.05)
        assert (pixels[np.triu_indices(9, 1)] < 255).any()


def test_a_whole_map_takes_twice_the_room():
    config = NexusConfig(attention_order=2, num_layers=80, num_attention_heads=64, hidden_size=8192, is_causal=False)
    fit = int((MAX_CELLS / (80 * 2 * 64)) ** 0.5)
    check_size(config, fit)
    with pytest.raises(InspectionError, match=f"it can show {fit} tokens"):
        check_size(config, fit + 1)


def test_the_browser_shows_later_tokens(save_nexus, inspected, driver):
    folder = save_nexus(NexusForMaskedLM, is_causal=False)
    result = inspected(folder)
    driver.get(Path(result["page"]).as_uri() + "#layer=1&head=2&token=1")
    calls = attentions_of(folder, checkpoints.tokenizer()(PROMPT)["input_ids"])
    shown = driver.execute_script("return [...data.tokens.keys()].map((j) => weight(1, 1, 2, 1, j))")
    np.testing.assert_allclose(shown, calls[1][1][2][1], atol=6e-3)
    assert not driver.execute_script("return document.querySelectorAll('.later').length")
