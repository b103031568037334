"""The table of what works with what: each row names a version that is pinned and a test that is there."""

import re

import pytest

from doc_pages import ROOT

PAGE = ROOT / "docs" / "compatibility.md"
COLUMNS = "| tool | how | | tried with | test |"


def rows(text: str) -> list[list[str]]:
    table = text.split(COLUMNS)[1].split("\n\n")[0].strip().splitlines()[1:]
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in table]


def pins() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in ("constraints.txt", "constraints-serving.txt"):
        for package, version in re.findall(r"^([\w-]+)==(\S+)$", (ROOT / name).read_text(), re.MULTILINE):
            found.setdefault(package.lower(), set()).add(version)
    return found


def check(row: list[str]) -> None:
    tool, _, works, tried, tests = row
    assert works, tool
    if tried != "not run":
        package, version = tried.lower().split()
        assert version in pins()[package], f"{tool}: {tried} is not what the tests run with, {pins()[package]}"
    else:
        assert works.startswith("untested")
    links = re.findall(r"\[([^]]+)\]\(([^)]+)\)", tests)
    assert links, f"{tool}: no test"
    for name, target in links:
        file = (PAGE.parent / target).resolve()
        assert file.is_relative_to(ROOT / "tests") and file.exists(), f"{tool}: {target} is not there"
        if name.startswith("make "):
            assert f"\n{name.removeprefix('make ')}:" in (ROOT / "Makefile").read_text(), f"{tool}: no target {name}"
        else:
            assert re.search(r"^def test_", file.read_text(), re.MULTILINE), f"{tool}: {target} has no test"


@pytest.mark.parametrize("row", rows(PAGE.read_text(encoding="utf-8")), ids=lambda row: row[0][:40])
def test_a_row_names_a_pinned_version_and_a_test_that_exists(row):
    check(row)


def test_the_date_of_the_table_is_said():
    assert re.search(r"^Tried on 20\d\d-\d\d-\d\d ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    "row",
    [
        ["tool", "as usual", "works", "peft 0.0.1", "[peft](../tests/integration/test_peft.py)"],
        ["tool", "as usual", "works", "not run", "[peft](../tests/integration/test_peft.py)"],
        ["tool", "as usual", "works", "peft 0.21.2", ""],
        ["tool", "as usual", "works", "peft 0.21.2", "[peft](../tests/integration/test_nothing.py)"],
        ["tool", "as usual", "works", "peft 0.21.2", "[make nothing](../tests/serving.py)"],
        ["tool", "as usual", "works", "peft 0.21.2", "[arms](../tests/arms.py)"],
    ],
)
def test_a_row_without_them_is_noticed(row):
    with pytest.raises(AssertionError):
        check(row)
