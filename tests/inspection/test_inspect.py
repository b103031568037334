"""`nexus inspect`: it shows what the model computes, finds the paths that are there, and bad input is one sentence."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from page_data import attentions_of, data_of, unrefined_of

import checkpoints
import nexus_transformers
from nexus_transformers import NexusConfig, NexusForCausalLM, NexusForSequenceClassification
from nexus_transformers.errors import InspectionError
from nexus_transformers.inspection import inspect
from nexus_transformers.inspection.collect import MAX_CELLS, LayerView, Maps, check_size, collect
from nexus_transformers.inspection.collect import kept as thousandths
from nexus_transformers.inspection.figures import maps_of_head
from nexus_transformers.inspection.page import page

PROMPT = "An exception is raised by the class."  # as in conftest.py


def test_the_page_holds_every_map_that_the_model_computes(nexus_folder, inspected, kept):
    for gates in (None, 0.3):
        data, maps = data_of(inspected(nexus_folder, gates)["page"])
        ids = checkpoints.tokenizer()(PROMPT)["input_ids"]
        assert "".join(data["tokens"]) == PROMPT
        expected = attentions_of(nexus_folder, ids, gates)
        assert [layer.shape for layer in maps] == [(2, 4, len(ids), len(ids))] * 3
        for actual, wanted in zip(maps, expected, strict=True):
            np.testing.assert_allclose(actual, kept(wanted), atol=1e-6)
        change = [np.abs(layer[-1] - layer[0]).sum(-1).mean(-1) / 2 for layer in expected]
        np.testing.assert_allclose(data["change"], change, atol=1e-4)
    assert max(map(max, data["change"])) > 0.05, "opened gates do something"


ARMS = {
    "values too": ({"refine_value": True}, [(1, None, 4), (2, None, 4)]),
    "separate": (
        {"inner_attention": "separate", "refine_value": True},
        [(0, None, 4), (1, "query", 4), (1, "key", 4), (1, "value", 4), (2, None, 4)],
    ),
    "separate, keys only, W_O": (
        {"inner_attention": "separate", "refine_query": False, "inner_output_projection": True, "head_dim": 16},
        [(0, None, 4), (1, "key", 4), (2, None, 4)],
    ),
    "self, order 3": (
        {"inner_attention": "self", "attention_order": 3},
        [(0, None, 4), (1, "query", 4), (1, "key", 2), (2, "query", 4), (2, "key", 2), (3, None, 4)],
    ),
}


@pytest.mark.parametrize("arm", ARMS)
def test_the_page_holds_every_map_of_every_inner_attention(arm, save_nexus, inspected, kept):
    """And where the heads would look if nothing were refined, which in "shared" alone is a level of the model."""
    fields, maps = ARMS[arm]
    folder, ids = save_nexus(**fields), checkpoints.tokenizer()(PROMPT)["input_ids"]
    result = inspected(folder)
    data, found = data_of(result["page"])
    assert data["maps"] == [[list(each) for each in maps]] * 2
    assert (data["inner_attention"], data["orders"]) == (fields.get("inner_attention", "shared"), [maps[-1][0]] * 2)
    calls, unrefined = attentions_of(folder, ids), unrefined_of(folder, ids)
    change = np.zeros((2, 4))
    for layer in range(2):
        np.testing.assert_allclose(found[layer][-len(calls[layer]) :], kept(calls[layer]), atol=1e-6)
        np.testing.assert_allclose(found[layer][0], kept(unrefined[layer]), atol=1.1e-3)
        change[layer] = np.abs(calls[layer][-1] - unrefined[layer]).sum(-1).mean(-1) / 2
        np.testing.assert_allclose(data["change"][layer], change[layer], atol=1e-4)
    assert change.max() > 0.05 and result["paths"]


@pytest.mark.parametrize("kind", ["separate", "self"])
def test_closed_gates_leave_every_inner_attention_without_effect(kind, save_nexus, inspected):
    folder = save_nexus(inner_attention=kind, inner_gate=True)
    closed = inspected(folder)
    assert closed["paths"] == closed["most_changed"] == []
    _, maps = data_of(closed["page"])
    for layer in maps:
        assert (layer[0] == layer[-1]).all() and (layer[0] != layer[1]).any()
    opened = inspected(folder, 0.5)
    assert opened["paths"] and {(gate["level"], gate["branch"]) for gate in opened["gates"]} == {
        (1, "query"),
        (1, "key"),
    }


@pytest.mark.usefixtures("no_pngs")
def test_the_block_in_the_docs_tells_which_map_is_which(save_nexus, kept, tmp_path, monkeypatch):
    """Beside those of the page, which come from hooks on each level of each layer."""
    text = (Path(nexus_transformers.__file__).parent / "docs" / "inspect.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    folder = save_nexus(attention_order=(3, 1))
    (tmp_path / "induction").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    exec(code, found := {})
    _, expected = data_of(inspect(folder, "red cat fog owl blue dog fog", tmp_path / "out")["page"])
    assert found["states"].keys() == {0, 1}
    names = [(0, "inner_1"), (0, "inner_2"), (0, "outer"), (1, "outer")]
    assert list(found["maps"]) == names
    for name, wanted in zip(names, [*expected[0], *expected[1]], strict=True):
        np.testing.assert_allclose(wanted, kept(found["maps"][name][0]), atol=1e-6)


def test_closed_gates_have_no_paths_and_open_ones_do(nexus_folder, inspected):
    closed = inspected(nexus_folder)
    assert closed["paths"] == closed["most_changed"] == []
    assert [gate["value"] for gate in closed["gates"]] == [0.0] * 6
    assert not any(any(heads) for heads in data_of(closed["page"])[0]["paths"])
    opened = inspected(nexus_folder, 0.3)
    assert opened["paths"] and {round(gate["value"], 6) for gate in opened["gates"]} == {0.3}
    assert opened["gates_open_in_the_model"] == 0
    assert NexusForCausalLM.from_pretrained(nexus_folder).gates().popitem()[1].item() == 0, "the folder is as it was"


def test_order_1_has_one_level_and_no_paths(save_nexus, inspected):
    result = inspected(save_nexus(attention_order=1))
    data, maps = data_of(result["page"])
    assert data["orders"] == [1, 1] and len(maps[0]) == 1
    assert result["paths"] == result["most_changed"] == result["gates"] == []


@pytest.mark.usefixtures("no_pngs")
def test_chat_and_generate(nexus_folder, inspected, kept, tmp_path):
    prompt_tokens = len(inspected(nexus_folder)["tokens"])
    result = inspect(nexus_folder, PROMPT, tmp_path / "out", chat=True, generate=5)
    text = "".join(result["tokens"][: result["prompt_tokens"]])
    assert text == f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    assert result["prompt_tokens"] > prompt_tokens and len(result["tokens"]) == result["prompt_tokens"] + 5
    model = NexusForCausalLM.from_pretrained(nexus_folder).eval()
    ids = torch.tensor([checkpoints.tokenizer()(text)["input_ids"]])
    for _ in range(5):
        ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    _, maps = data_of(result["page"])
    for actual, wanted in zip(maps, attentions_of(nexus_folder, ids[0].tolist()), strict=True):
        np.testing.assert_allclose(actual, kept(wanted), atol=1e-6)


def test_bfloat16_weights_and_other_heads(save_nexus, inspected, kept, tmp_path):
    folder = save_nexus(NexusForSequenceClassification, num_labels=3, dtype="bfloat16")
    result = inspected(folder)
    assert result["orders"] == [2, 2]
    model = NexusForSequenceClassification.from_pretrained(folder, attn_implementation="eager").model.float().eval()
    ids = torch.tensor([checkpoints.tokenizer()(PROMPT)["input_ids"]])
    expected = model(ids, output_attentions=True).attentions
    np.testing.assert_allclose(data_of(result["page"])[1][0][1], kept(expected[1][0].detach()), atol=1e-6)
    with pytest.raises(InspectionError, match="cannot continue a text"):
        inspect(folder, PROMPT, tmp_path / "more", generate=3)


@pytest.mark.usefixtures("no_pngs")
def test_the_page_stands_alone(save_nexus, tmp_path):
    """Nothing in it points anywhere, and a prompt cannot break out of its place."""
    prompt = "</script><img src=x onerror=alert(1)> @maps@ <!-- & \x00\n"
    result = inspect(save_nexus(), prompt, tmp_path / "out")
    text = Path(result["page"]).read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert set(re.findall(r"\bhttps?://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "<img" not in text and text.count("</script>") == 4
    assert not re.search(r"\b(fetch|XMLHttpRequest|import|eval)\s*\(", text)
    assert not re.search(r"@(generator|title|style|data|scripts)@", text), "every mark of the template is filled"
    assert "".join(data_of(result["page"])[0]["tokens"]) == prompt


def test_pngs_show_what_they_should(nexus_folder, inspected):
    result = inspected(nexus_folder, 0.3, pngs=True)
    assert [Path(file).name for file in result["files"]] == ["gates.png", "index.html", "overview.png"]
    overview, gates = (imread(Path(result["page"]).with_name(name)) for name in ("overview.png", "gates.png"))
    assert overview.shape[0] > 600 and overview.shape[1] > 600
    for picture in (overview, gates):
        assert picture[..., :3].std() > 0.05, "it is not blank"
    # half of the bars are the queries' blue, half the keys' orange
    blue, orange = (
        np.abs(gates[..., :3] - np.array(colour) / 255).max(-1) < 0.02
        for colour in ((0x1F, 0x5F, 0xBF), (0xC2, 0x57, 0x0C))
    )
    assert blue.sum() > 1000 and blue.sum() == pytest.approx(orange.sum(), rel=0.1)


def test_the_overview_names_every_map(save_nexus):
    model = NexusForCausalLM.from_pretrained(
        save_nexus(num_layers=1, inner_attention="self"), attn_implementation="eager"
    )
    views = collect(model.eval(), torch.arange(5)[None])
    titles = [title for title, _ in maps_of_head(views[0], 0, head=3)]
    assert titles[:4] == [
        f"layer 0, head 3: {name}"
        for name in ("nothing refined", "level 1 of 2, query", "level 1 of 2, key", "level 2 of 2")
    ]
    assert titles[4] == f"level 2 minus unrefined ({views[0].change[3]:.2f} changed)"


def test_dollar_signs_are_no_mathematics(nexus_folder, tmp_path):
    """Between two of them, matplotlib would look for TeX: a wrong picture, or an error."""
    folder = tmp_path / "a$\\frac$b"
    folder.symlink_to(nexus_folder)
    result = inspect(folder, "$x_$ $", tmp_path / "out")
    assert result["model"] == folder.name and len(result["files"]) == 3


def test_290_tokens_of_30_layers_make_a_page_below_10_megabytes():
    """The shape of SmolLM2-135M, converted: 540 maps. Random attention, far from uniform, packs worse than trained."""
    sharp = np.random.default_rng(0).gumbel(size=(9, 290, 290)) * 1.5
    levels = [torch.tensor(sharp), torch.tensor(sharp + 0.05 * np.random.default_rng(1).normal(size=sharp.shape))]
    hidden = torch.ones(290, 290, dtype=torch.bool).triu(1)
    weights = torch.stack([level.masked_fill(hidden, -torch.inf).softmax(-1) for level in levels])
    maps = thousandths(weights[..., ~hidden]).numpy().astype(np.uint16)
    facts = {"model": "SmolLM2", "tokens": ["token"] * 290}
    levels = [Maps(level, None, cells) for level, cells in enumerate(maps, start=1)]
    text = page(facts, [LayerView(levels, [0.0] * 9, [[]] * 9)] * 30)
    assert 3e6 < len(text) < 10e6


def test_a_page_too_large_for_a_browser_is_refused():
    """With the number of tokens that it can show, which it then does show."""
    config = NexusConfig(attention_order=2, num_layers=80, num_attention_heads=64, hidden_size=8192)
    with pytest.raises(InspectionError, match=r"can show (\d+) tokens") as error:
        check_size(config, 500)
    fit = int(re.search(r"show (\d+) tokens", str(error.value))[1])
    check_size(config, fit)
    with pytest.raises(InspectionError, match=f"can show {fit} tokens"):
        check_size(config, fit + 1)
    config.inner_attention = "separate"  # two inner attentions, and where heads would look if nothing were refined
    with pytest.raises(InspectionError, match=f"{80 * 4 * 64} maps"):
        check_size(config, fit)
    assert 80 * 2 * 64 * fit * (fit + 1) / 2 <= MAX_CELLS < 80 * 2 * 64 * (fit + 3) * (fit + 4) / 2


def test_nothing_of_the_model_is_changed(save_nexus):
    """The hooks are gone, and a second look sees the same."""
    model = NexusForCausalLM.from_pretrained(save_nexus(), attn_implementation="eager").eval()
    ids = torch.arange(9)[None]
    before = model(ids).logits
    one, other = collect(model, ids), collect(model, ids)
    assert torch.equal(model(ids).logits, before)
    assert all(not module._forward_hooks for module in model.modules())
    for first, second in zip(one, other, strict=True):
        assert all(np.array_equal(a.cells, b.cells) for a, b in zip(first.maps, second.maps, strict=True))
        assert first.paths == second.paths
