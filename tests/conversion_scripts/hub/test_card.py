"""The model card: valid metadata, facts only, and nothing left to be filled in."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from nexus_transformers.conversion_scripts.hub.card import PLACEHOLDER, card_for_repository, write_card
from nexus_transformers.errors import HubError

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "experiments" / "results"
REPORT = {
    "nexus_transformers": "0.1.0",
    "date": "2026-11-01T00:00:00+00:00",
    "environment": {"transformers": "5.23.0", "torch": "2.13.0"},
    "source": {"name": "someone/tiny", "revision": "abc", "parameters": 1000, "model_type": "llama", "config": {}},
    "model": {
        "attention_order": 2,
        "can_be_served": True,
        "inner_attention": "shared",
        "refined": ["query", "key"],
        "inner_output_projection": False,
        "inner_scale": True,
        "inner_gate": True,
        "gate_init": 0.0,
        "gates": 6,
        "inner_parameters": 0,
        "parameters": 1006,
        "dtype": "float32",
        "files": {"model.safetensors": {"bytes": 1, "sha256": "0"}},
    },
    "verification": {
        "identical_tensors": 30,
        "identical_parameters": 1000,
        "added_parameters": 6,
        "positions": 1408,
        "max_abs_logit_difference": 0.0,
        "mean_kl": 1e-09,
        "tolerance": 0.0,
        "attn_implementation": "sdpa",
        "dtype": "float32",
        "compared_at_order": 2,
        "negative_controls": {"a gate set to 0.5": 1.25},
    },
}
SOURCE_CARD = """---
license: other
license_name: tiny-licence
license_link: LICENSE.md
language: [en, no]
datasets: [someone/text]
base_model: someone/ancestor
model-index: 3
extra: dropped
---
# Tiny
"""


@pytest.fixture
def write(tmp_path):
    """Writes a card and reads it as the Hub does: `write(report, the source's card)`."""

    def run(report, source_card=None):
        for name in ("source", "model"):
            (tmp_path / name).mkdir(exist_ok=True)
        if source_card is not None:
            (tmp_path / "source" / "README.md").write_text(source_card)
        write_card(tmp_path / "model", tmp_path / "source", report)
        text = (tmp_path / "model" / "README.md").read_text()
        assert REGEX_YAML_BLOCK.search(text), "the server's own pattern"
        assert "{{" not in text and "{%" not in text
        card = ModelCard(text)
        assert ModelCardData(**card.data.to_dict()).to_dict() == card.data.to_dict()
        return card

    return run


def report(section, **changes):
    return REPORT | {section: REPORT[section] | changes}


def test_metadata_state_source_licence_and_measured_figures(write):
    data = write(REPORT, SOURCE_CARD.replace("model-index: 3\n", "")).data
    assert (data.license, data.license_name) == ("other", "tiny-licence")
    assert data.license_link == "https://huggingface.co/someone/tiny/blob/abc/LICENSE.md"
    assert data.language == ["en", "no"], "Norwegian is no boolean"
    assert data.datasets == ["someone/text"]
    assert (data.base_model, data.base_model_relation) == ("someone/tiny", "finetune")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert {"nexus", "custom_code"} <= set(data.tags)
    assert "extra" not in data
    figures = {result.metric_type: result.metric_value for result in data.eval_results}
    assert figures == {"max_abs_logit_difference": 0.0, "mean_kl_divergence": 1e-09}
    for result in data.eval_results:
        assert "not a quality benchmark" in result.task_name
        assert result.verified is None, "that is for the Hub to say"


def test_the_card_quotes_what_the_experiments_found(write):
    text = " ".join(write(REPORT).text.split())
    recall = json.loads((RESULTS / "recall.json").read_text())["summary"]["recall"]
    accuracy = 100 * recall["1 layer, order 2"]["accuracy"]["32"]["mean"]
    assert f"answers right | {accuracy:.0f} % |" in text
    assert "Not figures of this model" in text


def test_the_card_cites_the_paper_as_the_repository_does(write):
    (paper,) = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert len(names) == 9
    text = write(REPORT).text
    assert f"author = {{{' and '.join(names)}}}" in text
    assert f"title = {{{paper['title']}}}" in text


def test_without_verification_nothing_is_claimed(write):
    card = write({name: part for name, part in REPORT.items() if name != "verification"})
    assert "model-index" not in card.data.to_dict() and "model_name" not in card.data.to_dict()
    assert "Nothing: the conversion ran with `--no-verify`" in card.text


@pytest.mark.parametrize("source_card", [None, "# No metadata\n", "---\nlicense: [mit\n---\n", "---\n- 1\n---\n"])
def test_a_licence_that_is_not_stated_is_unknown(source_card, write):
    card = write(REPORT, source_card)
    assert card.data.license == "unknown"
    assert "licence of the source is unknown" in card.text


def test_a_local_source_names_a_base_model_only_if_its_own_card_does(write):
    local = report("source", name="/home/me/tiny", revision=None)
    card = write(local)
    assert card.data.base_model is None and "base_model_relation" not in card.data
    assert "| source | tiny |" in card.text
    assert "/home/me" not in card.content, "where it lay on this machine concerns nobody"
    assert write(local, "---\nbase_model: someone/ancestor\nlicense: mit\n---\n").data.base_model == "someone/ancestor"


def test_an_allowed_difference_is_said(write):
    assert "(allowed" not in write(REPORT).text
    fused = report("verification", tolerance=0.001, max_abs_logit_difference=0.0004)
    assert "0.0004 (allowed: 0.001" in write(fused).text


def test_the_card_says_how_many_parameters_were_added_and_what_they_are(write):
    assert "| parameters added (6 gates) | 6 |" in write(REPORT).text
    separate = report("model", inner_attention="separate", inner_parameters=2000, parameters=3006)
    text = write(separate | {"verification": REPORT["verification"] | {"added_parameters": 2006}}).text
    assert "| parameters added (6 gates, the rest in inner layers drawn at random) | 2,006 |" in text
    assert "| parameters, source / Nexus | 1,000 / 3,006 |" in text


@pytest.mark.parametrize("arm", ["shared", "separate", "self"])
@pytest.mark.parametrize(
    ("refined", "words"),
    [
        (["query"], "queries"),
        (["key"], "keys"),
        (["value"], "values"),
        (["query", "key"], "queries and keys"),
        (["query", "key", "value"], "queries, keys and values"),
    ],
)
def test_the_card_names_what_is_refined_and_nothing_else(arm, refined, words, write):
    """Up to the section on use, in which no other branch may be named."""
    text = " ".join(write(report("model", inner_attention=arm, refined=refined)).text.split("## Use")[0].split())
    assert f"A Nexus layer refines its {words} with an inner attention" in text
    others = {"query": "queries", "key": "keys", "value": "values"}
    assert not [name for branch, name in others.items() if branch not in refined and name in text]


@pytest.mark.parametrize("served", [True, False])
def test_the_card_says_how_to_serve_what_vllm_can_serve(served, write):
    assert ("vllm serve" in write(report("model", can_be_served=served)).text) is served


def test_a_card_of_order_1_says_that_nothing_is_refined(write):
    flat = report("model", attention_order=1, refined=[], inner_gate=False, gates=0)
    text = write(flat).text
    assert "All its layers are of order 1: standard attention" in text
    assert "refines" not in text and "fully nested" not in text and "It scales" not in text


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("gate", [True, False])
def test_the_card_names_what_the_paper_does_not_have(scale, gate, write):
    text = " ".join(write(report("model", inner_scale=scale, inner_gate=gate)).text.split("## Differences")[1].split())
    assert ("It scales each inner output" in text) == scale
    assert ("Gates blend" in text) == gate


def test_only_a_model_with_gates_is_told_to_train_them(write):
    assert "freeze_all_but_gates" in write(REPORT).text
    assert "freeze_all_but_gates" not in write(report("model", inner_gate=False, gates=0)).text
    assert "freeze_all_but_gates" not in write(report("model", attention_order=1, refined=[])).text


def test_the_function_of_the_source_is_claimed_up_to_rounding_where_that_is_so(write):
    assert "computes the function of its source** until" in write(REPORT).text
    assert (
        "computes the function of its source**, up to rounding, until"
        in write(report("verification", tolerance=0.1)).text
    )


def test_random_tokens_are_not_called_text(write, tmp_path):
    assert "1408 positions of random tokens" in write(REPORT).text
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    assert "1408 positions of real text and random tokens" in write(REPORT).text


def test_the_uploaded_card_names_its_repository_and_the_folder_s_own_does_not(write, tmp_path):
    write(REPORT)
    before = (tmp_path / "model" / "README.md").read_text()
    uploaded = card_for_repository(tmp_path / "model", "someone/nexus").decode()
    assert uploaded == before.replace(PLACEHOLDER, "someone/nexus") != before
    assert 'path = "someone/nexus"' in uploaded
    assert (tmp_path / "model" / "README.md").read_text() == before


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "has no model card"),
        ("# Title\n", "metadata are not valid"),
        ("---\n---\n# Title\n", "metadata are not valid"),
        ("---\nlicense: [mit\n---\n# Title\n", "metadata are not valid"),
        ("---\n- mit\n---\n# Title\n", "metadata are not valid"),
        ("---\nmodel-index: 3\n---\n# Title\n", "metadata are not valid"),
        ("---\nlicense: mit\n---\n# {{ title }}\n", "line 4 was left to be filled in"),
        ("---\nlicense: mit\n---\n# Title\n\nMore information needed\n", "line 6 was left to be filled in"),
    ],
)
def test_a_card_that_is_not_ready_is_not_uploaded(text, part, tmp_path):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    with pytest.raises(HubError, match=part):
        card_for_repository(tmp_path, "someone/nexus")


def test_a_template_in_an_example_of_code_is_no_gap(tmp_path):
    text = "---\nlicense: mit\n---\n```jinja\n{{ messages }}\n```\n"
    Path(tmp_path / "README.md").write_text(text)
    assert card_for_repository(tmp_path, "someone/nexus").decode() == text
