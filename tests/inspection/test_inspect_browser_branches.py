"""The page in a real browser, of models whose inner levels belong to a branch: each can be chosen, with its numbers."""

import pytest
import torch

import checkpoints
from nexus_transformers import NexusForCausalLM

pytest.importorskip("selenium")
from selenium.webdriver.support.ui import Select

from browser import Page

INNER = {  # the branches to choose from, and of each the titles of its maps
    "separate": (
        {"refine_value": True},
        {branch: ["Level 1, of the " + branch] for branch in ("queries", "keys", "values")},
    ),
    "self": (
        {"attention_order": (3, 1)},
        {
            "queries": [f"Level {level}, queries look at queries" for level in (1, 2)],
            "keys": [f"Level {level}, keys look at keys (head 1 of 2)" for level in (1, 2)],
        },
    ),
}


@pytest.mark.parametrize("kind", INNER)
def test_the_inner_level_of_a_branch_can_be_chosen(driver, save_nexus, inspected, kind):
    fields, titles = INNER[kind]
    folder = save_nexus(inner_attention=kind, **fields)
    result = inspected(folder)
    model = NexusForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = checkpoints.tokenizer()("".join(result["tokens"]))["input_ids"]
    with torch.no_grad():
        attentions = model(torch.tensor([ids]), output_attentions=True).attentions
    calls = {
        call.name: maps[0].numpy() for call, maps in zip(model.config.attention_calls()[0], attentions, strict=False)
    }
    page = Page(driver, result["page"], "#layer=0&head=3&token=9")
    assert page.address == "#layer=0&head=3&token=9&branch=key"
    assert f'inner attention "{kind}", refined: query, key' in page.text("#facts")
    assert [option.text for option in Select(page.one("#branch")).options] == list(titles)
    small = page.wait_for('.cell[data-layer="0"][data-head="3"][data-drawn="yes"] canvas')
    pictures = set()
    for plural, inner in titles.items():
        Select(page.one("#branch")).select_by_visible_text(plural)
        branch = page.one("#branch").get_attribute("value")
        assert page.address == f"#layer=0&head=3&token=9&branch={branch}"
        page.wait_for('.cell[data-layer="0"][data-head="3"][data-drawn="yes"]')
        pictures.add(page.run("return arguments[0].toDataURL()", small))
        shown = [title.text for title in page.all(".level h4")]
        assert shown == [
            "Nothing refined: for comparison, no level of the model",
            *inner,
            f"Level {len(inner) + 1}, the last",
        ]
        assert [caption.text for caption in page.all("#maps-box figcaption")][:-1] == shown
        for level in range(1, len(inner) + 1):
            weights = calls[f"inner_{branch}_{level}" if kind == "self" else f"inner_{branch}.attention"]
            row = weights[3 * len(weights) // 4][9].round(3)
            assert page.weights(level) == pytest.approx({j: row[j] for j in page.weights(level)}, abs=1e-6)
            assert len(page.weights(level)) == min(6, (row >= 0.01).sum())
    assert len(pictures) == len(titles), "the small maps follow"
    assert ("Values are refined, which" in page.text("#notice")) is (kind == "separate")
    if kind == "self":
        Select(page.one("#layer")).select_by_value("1")
        assert [title.text for title in page.all(".level h4")] == ["The only level"]
    page.check_quiet()
