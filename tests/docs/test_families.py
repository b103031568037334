"""docs/convert.md has the table of families as they are."""

import runpy

import nexus_transformers

FAMILIES = runpy.run_path(nexus_transformers.__path__[0] + "/docs/families.py")


def test_the_table_is_up_to_date():
    text = FAMILIES["PAGE"].read_text(encoding="utf-8")
    assert FAMILIES["BETWEEN"].search(text)
    assert FAMILIES["page"]() == text, "run: python docs/families.py"
