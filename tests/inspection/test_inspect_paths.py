"""The paths of `nexus inspect`: they name what is in the maps, and find what a trained model does."""

import numpy as np
import pytest
from page_data import data_of

from nexus_transformers.inspection import inspect
from nexus_transformers.inspection.paths import MIN_GAIN


@pytest.mark.parametrize(
    ("fields", "lengths"),
    [
        ({"attention_order": 3}, {1, 2}),
        ({"inner_attention": "separate"}, {1}),
        ({"attention_order": 3, "inner_attention": "self"}, {1, 2}),
    ],
    ids=["shared", "separate", "self"],
)
def test_paths_name_what_is_in_the_maps(fields, lengths, save_nexus, inspected):
    """At order 3, a hop goes back from level 2 and, where what level 2 did is new too, another from level 1."""
    data, maps = data_of(inspected(save_nexus(**fields))["page"])
    found, branches = set(), set()
    for layer, heads in enumerate(data["paths"]):
        calls = {(level, branch): (maps[layer][n], own) for n, (level, branch, own) in enumerate(data["maps"][layer])}
        for head, paths in enumerate(heads):
            pairs = {(query, target) for query, target, *_ in paths}
            gains = maps[layer][-1, head] - maps[layer][0, head]
            for row, wanted in enumerate(gains):
                large = {(row, int(target)) for target in np.argsort(-wanted)[:4] if wanted[target] >= MIN_GAIN + 0.005}
                assert large <= pairs
            for query, target, gain, chains in paths:
                assert gain == pytest.approx(gains[query, target], abs=0.005)
                for chain in chains:
                    found.add(len(chain))
                    branches.add(chain[0][0])
                    start = [target, query]
                    for number, (branch, level, token, inner_head, weight, credit, *inner) in enumerate(chain):
                        assert level == data["orders"][layer] - 1 - number and credit >= 0
                        weights, own = calls[level, inner[0] if inner else None]
                        assert number or inner in ([], [branch])
                        assert data["inner_attention"] != "self" or inner_head == head * own // data["heads"]
                        gatherer = start[0] if branch == "key" else start[1]
                        named = weights[inner_head * (data["heads"] // own)]
                        assert weight == pytest.approx(named[gatherer, token], abs=0.0081)
                        start = [token, gatherer]
    assert found == lengths and branches == {"query", "key"}


@pytest.mark.slow
def test_the_path_of_induction_is_found(induction, tmp_path):
    """A B ... A: the second A looks at B, whose key was gathered from the first A."""
    folder, accuracy = induction(order=2, steps=800)
    assert accuracy > 0.99
    pairs = ["red cat", "fog owl", "blue dog", "fir ash", "sun rose", "green fox"]
    for asked in (0, 3):
        words = " ".join([*pairs, pairs[asked].split()[0]])
        result = inspect(folder, words, tmp_path / "out")
        first, answer = result["paths_of_last_token"][0], 2 * asked + 1
        assert (first["query"], first["target"]) == (12, answer) and first["gain"] > 0.5, first["spelled"]
        (key,) = [chain for chain in first["chains"] if chain[0]["branch"] == "key"]
        assert key[0]["token"] == answer - 1
        assert key[0]["credit"] > 2
        question, answer_word = pairs[asked].split()
        assert f'"{question}"(12) → "{answer_word}"({answer})' in first["spelled"] or (
            first["chains"][0][0]["branch"] == "query"
        )


@pytest.mark.slow
def test_without_nesting_there_is_no_such_path(induction, tmp_path):
    folder, accuracy = induction(order=1, steps=400)
    assert accuracy < 0.2
    result = inspect(folder, "red cat fog owl blue dog red", tmp_path / "out")
    assert result["paths"] == []
