"""The `nexus inspect` command: what it prints and writes, what it never replaces, and bad input in one sentence."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from nexus_transformers.errors import NexusError
from nexus_transformers.inspection import inspect
from nexus_transformers.inspection.printing import print_inspection

PROMPT = "An exception is raised by the class."


def test_command_prints_and_returns(save_nexus, nexus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_nexus()
    status, output, errors = nexus("inspect", folder, PROMPT, "--json")
    assert (status, errors) == (0, "")
    result = json.loads(output)
    assert result["page"] == "random-nexus-inspect/index.html"
    assert sorted(path.name for path in Path("random-nexus-inspect").iterdir()) == ["index.html", "overview.png"]
    assert result["orders"] == [2, 2] and result["heads"] == 4
    assert result["most_changed"][0]["change"] == max(max(heads) for heads in result["change"])
    assert [path["gain"] for path in result["paths"]] == sorted(
        (path["gain"] for path in result["paths"]), reverse=True
    )
    assert not [path for path in Path().iterdir() if path.name.startswith(".")], "nothing is left behind"


def test_closed_gates_and_order_1_are_said(nexus_folder, save_nexus, inspected, capsys):
    print_inspection(inspected(nexus_folder))
    output = capsys.readouterr().out
    assert "All gates are closed" in output
    print_inspection(inspected(nexus_folder, 0.3))
    output = capsys.readouterr().out
    assert "All gates are closed" not in output and " → " in output
    print_inspection(inspected(nexus_folder, 0.3, pngs=True))
    assert "gates.png" in capsys.readouterr().out
    print_inspection(inspected(save_nexus(attention_order=1)))
    output = capsys.readouterr().out
    assert "order 1" in output and "nothing is refined" in output


def test_without_matplotlib_there_is_the_page_and_a_note(nexus_folder, nexus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, output, _ = nexus("inspect", nexus_folder, PROMPT, "--out", tmp_path / "out", "--open-gates", "0.3")
    assert status == 0 and " → " in output
    assert "Note: no PNGs, as matplotlib is not installed (pip install matplotlib)." in output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]


@pytest.mark.usefixtures("no_pngs")
def test_an_earlier_page_is_replaced_and_nothing_else(nexus_folder, inspected, tmp_path):
    out = Path(shutil.copytree(Path(inspected(nexus_folder)["page"]).parent, tmp_path / "out"))
    before = (out / "index.html").read_bytes()
    inspect(nexus_folder, PROMPT + " More.", out)
    assert (out / "index.html").read_bytes() != before
    (out / "notes.txt").write_text("mine")
    with pytest.raises(NexusError, match=r"holds notes\.txt, which this command did not write"):
        inspect(nexus_folder, PROMPT, out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("<title>mine</title>")
    with pytest.raises(NexusError, match="did not write"):
        inspect(nexus_folder, PROMPT, other)
    assert (other / "index.html").read_text() == "<title>mine</title>"
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(NexusError, match="is a file"):
        inspect(nexus_folder, PROMPT, file)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(NexusError, match="symbolic link"):
        inspect(nexus_folder, PROMPT, tmp_path / "link")


@pytest.mark.usefixtures("no_pngs")
def test_a_failure_leaves_nothing(nexus_folder, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(NexusError, match="No space left on device"):
        inspect(nexus_folder, PROMPT, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def model_of(llama_folder, nexus_folder, save_nexus, tmp_path):
    """A model with the fault in question."""

    def run(kind):
        if kind == "llama":
            return llama_folder
        if kind == "good":
            return nexus_folder
        if kind == "no gates":
            return save_nexus()
        if kind == "order 1":
            return save_nexus(attention_order=1)
        if kind == "small vocabulary":
            return save_nexus(vocab_size=100)
        copy = Path(shutil.copytree(nexus_folder, tmp_path / "copy"))
        if kind == "no tokenizer":
            for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                (copy / name).unlink()
        elif kind == "bad tokenizer":
            (copy / "tokenizer.json").write_text("{")
        elif kind == "no template":
            (copy / "chat_template.jinja").unlink()
        elif kind == "no weights":
            (copy / "model.safetensors").unlink()
        elif kind == "fewer weights":
            raw = json.loads((copy / "config.json").read_text())
            (copy / "config.json").write_text(json.dumps(raw | {"qk_norm": True}))
        return copy

    return run


@pytest.mark.parametrize(
    ("kind", "arguments", "part"),
    [
        ("llama", [PROMPT], "is not a Nexus model (model_type='llama'). Convert it first"),
        ("good", [""], "prompt is empty"),
        ("good", [" \n"], "prompt is empty"),
        ("good", ["word " * 600], "prompt is too long"),
        ("good", [PROMPT, "--generate", "505"], "and 505 to generate, but"),
        ("good", [PROMPT, "--generate", "-1"], "--generate -1"),
        ("good", [PROMPT, "--open-gates", "nan"], "--open-gates nan"),
        ("no gates", [PROMPT, "--open-gates", "0.1"], "has no gates; it is nested without gates, fully"),
        ("order 1", [PROMPT, "--open-gates", "0.1"], "has no gates; all its layers are of order 1"),
        ("no tokenizer", [PROMPT], "has no tokenizer"),
        ("bad tokenizer", [PROMPT], "its tokenizer cannot be read"),
        ("no template", [PROMPT, "--chat"], "no chat template"),
        ("no weights", [PROMPT], "has no weights"),
        ("fewer weights", [PROMPT], "lacks tensor"),
        ("small vocabulary", [PROMPT], "do not belong together"),
    ],
)
def test_bad_input_is_one_sentence(kind, arguments, part, model_of, nexus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = model_of(kind)
    status, output, errors = nexus("inspect", model, *arguments)
    assert (status, output) == (1, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert part in errors
    assert [path.name for path in tmp_path.iterdir() if path.name != "copy"] == []
    _, output, _ = nexus("inspect", model, *arguments, "--json")
    assert part in json.loads(output)["error"]


@pytest.mark.parametrize("model", ["nowhere", "./nowhere", "no/where/at-all"])
def test_a_model_that_is_not_there(model, nexus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, output, errors = nexus("inspect", model, PROMPT)
    assert (status, output) == (1, "")
    assert errors.startswith(f"error: {model}: no such folder.") and errors.count("\n") == 1


def test_attention_that_is_not_finite_is_no_page(nexus_folder, nexus, tmp_path):
    status, output, errors = nexus("inspect", nexus_folder, PROMPT, "--out", tmp_path / "out", "--open-gates", "1e30")
    assert (status, output, errors.count("\n")) == (1, "", 1) and "its attention is not finite" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_pngs")
@pytest.mark.parametrize(
    "settings",
    [
        {"return_dict_in_generate": True},
        {"num_return_sequences": 3, "do_sample": True},
        {"stop_strings": ["class"]},
        {"num_beams": 4},
    ],
    ids=str,
)
def test_the_continuation_is_greedy_whatever_the_model_s_own_settings(settings, nexus_folder, tmp_path):
    folder = Path(shutil.copytree(nexus_folder, tmp_path / "model"))
    expected = inspect(folder, PROMPT, tmp_path / "one", generate=4)["tokens"]
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    assert inspect(folder, PROMPT, tmp_path / "two", generate=4)["tokens"] == expected
