"""Tokenizers and chat templates that do not end, or fill the memory, end in one sentence, as a check that hangs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import checkpoints
from nexus_transformers import bounded
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.conversion_scripts.verification.isolated import run

ENDLESS = 3 * "{% for i in range(99999) %}" + 3 * "{% endfor %}"
HUGE = "{{ 'a' * 999999999999 }}"


@pytest.fixture
def limits(monkeypatch, tmp_path_factory):
    """Here, and in the fresh process."""
    text = Path(bounded.__file__).read_text()
    for name, value, smaller in (("SECONDS", "120", 3), ("MEMORY", "4 << 30", 500 << 20)):
        monkeypatch.setattr(bounded, name, smaller)
        assert text.count(f"\n{name} = {value} ") == 1
        text = text.replace(f"\n{name} = {value} ", f"\n{name} = {smaller} ")
    copy = tmp_path_factory.mktemp("limits") / "bounded.py"
    copy.write_text(text)
    monkeypatch.setattr(bounded, "__file__", str(copy))


@pytest.fixture
def source(llama_folder, tmp_path):
    return Path(shutil.copytree(llama_folder, tmp_path / "source"))


def explode(folder: Path) -> None:
    """A normalizer that makes 10¹² letters of one."""
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Sequence", "normalizers": [replace] * 12}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def refused(result, *parts) -> None:
    status, output, errors = result
    assert (status, output, errors.count("\n")) == (1, "", 1), errors
    for part in parts:
        assert part in errors


def test_a_template_without_end_stops_the_conversion(source, nexus, tmp_path, limits):
    (source / "chat_template.jinja").write_text(ENDLESS)
    parts = "rendering a chat with it takes more than 3 seconds; correct that file, or remove it."
    refused(nexus("convert", source, tmp_path / "out"), f"error: {source / 'chat_template.jinja'}: {parts}")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_normalizer_that_explodes_stops_the_conversion(source, nexus, tmp_path, limits):
    """Already when the tokenizer is loaded, if it has added tokens that are normalized."""
    explode(source)
    content = json.loads((source / "tokenizer.json").read_text())
    token = {"id": 512, "content": "a word", "special": False, "normalized": True}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    content["added_tokens"].append(token)
    (source / "tokenizer.json").write_text(json.dumps(content))
    refused(nexus("convert", source, tmp_path / "out"), "tokenizer.json: loading this tokenizer takes more than ")


def test_inspect_ends_whatever_template_or_tokenizer_does_not(source, nexus, tmp_path, limits):
    model = tmp_path / "model"
    convert(source, model, verify=False)
    (model / "chat_template.jinja").write_text(HUGE)
    out = ["--out", tmp_path / "out"]
    refused(
        nexus("inspect", model, "a word", "--chat", *out),
        "chat_template.jinja: rendering the prompt with it takes more than ",
    )
    explode(model)
    refused(nexus("inspect", model, "a word", *out), "tokenizer.json: tokenizing the prompt with it takes more than ")


def test_a_rendered_chat_is_given_to_the_models_up_to_the_length_of_a_passage(tmp_path, nexus):
    """A template may write a book; the models are not to read all of it."""
    source = checkpoints.llama(tmp_path / "source")
    template = "{% for i in range(9999) %}a book {% endfor %}" + checkpoints.CHAT_TEMPLATE
    (source / "chat_template.jinja").write_text(template)
    report = convert(source, tmp_path / "out")
    assert report["verification"]["greedy_equal"] is True


def test_a_check_that_hangs_is_given_up_with_all_that_it_started(tmp_path):
    hanging = f"import os, time; os.fork(); open('{tmp_path}/' + str(os.getpid()), 'w'); time.sleep(1000)"
    with pytest.raises(subprocess.TimeoutExpired):
        run([sys.executable, "-c", hanging], tmp_path, dict(os.environ), seconds=1)
    started = [int(file.name) for file in tmp_path.iterdir()]
    assert len(started) == 2
    assert psutil.wait_procs([psutil.Process(pid) for pid in started if psutil.pid_exists(pid)], timeout=10)[1] == []
