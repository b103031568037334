"""docs/architecture.md has the tree as it is, and every file of it says what it is for."""

import runpy

import nexus_transformers

TREE = runpy.run_path(nexus_transformers.__path__[0] + "/docs/tree.py")


def test_the_tree_is_up_to_date():
    text = TREE["PAGE"].read_text(encoding="utf-8")
    assert TREE["BETWEEN"].search(text)
    assert TREE["page"]() == text, "run: python docs/tree.py"


def test_every_file_says_what_it_is_for():
    silent = {line.strip() for line in TREE["tree"]().splitlines() if len(line.split()) < 2 and ".py" in line}
    assert silent <= {"conftest.py", "__main__.py"}


def test_the_summary_is_the_first_sentence(tmp_path):
    file = tmp_path / "file.py"
    for text in (
        "One thing. More.",
        "One thing: `nexus x`. More.",
        "\nOne thing.\n\nMore.\n",
        "\nOne\nthing:\n\n* a\n",
    ):
        file.write_text(f'# (c)\n"""{text}"""')
        assert TREE["summary"](file) == "One thing"
    file.write_text(f'"""One thing, {"and more, " * 20}"""')
    assert TREE["summary"](file).endswith("and more") and len(TREE["summary"](file)) <= TREE["LONGEST"]
