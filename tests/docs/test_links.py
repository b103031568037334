"""Links lead somewhere: every file and every heading that a page of this repository names exists."""

import pytest

from doc_pages import ROOT, anchors, links

PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("demo", "build") for part in page.relative_to(ROOT).parts)
    and page.name != "model_card.md"  # a template
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in links(page):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists() and target.is_relative_to(ROOT), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading; there are {sorted(anchors(target))}"


def test_a_heading_has_the_name_that_github_gives_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One, `two` [three](x.md)!\n\n## Again\n\n```text\n# no heading\n```\n\n## Again\n")
    assert anchors(page) == {"one-two-three", "again", "again-1"}
    page.write_text("[a](b.md#c) `[no](link)` ![d](e.png)\n")
    assert links(page) == ["b.md#c", "e.png"]
