"""A source's tokenizer is carried over byte for byte."""

import os
import subprocess
import sys

from transformers import AutoTokenizer

import checkpoints
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.tokenization import train_tokenizer
from nexus_transformers.tokenization.carry_over import (
    CARRIED_FILES,
    carry_over_tokenizer,
    keep_tokenizer_class,
    save_tokenizer,
)


def test_every_known_file_is_copied_as_it_is_and_nothing_else(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "additional_chat_templates").mkdir(parents=True)
    target.mkdir()
    for number, name in enumerate([*CARRIED_FILES, "additional_chat_templates/tool_use.jinja"]):
        (source / name).write_bytes(bytes([number, 0, 255, 13, 10]))
    (source / "model.safetensors").write_bytes(b"weights")
    (source / "evil.py").write_text("print('never carried')")
    carried = carry_over_tokenizer(source, target)
    assert set(carried) == {*CARRIED_FILES, "additional_chat_templates/tool_use.jinja"}
    files = {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}
    assert files == set(carried)
    for name in carried:
        assert (target / name).read_bytes() == (source / name).read_bytes()


def test_nothing_to_carry(tmp_path):
    (tmp_path / "target").mkdir()
    assert carry_over_tokenizer(tmp_path, tmp_path / "target") == []


def test_carried_tokenizer_loads_and_agrees(llama_folder, tmp_path):
    carry_over_tokenizer(llama_folder, tmp_path)
    source, carried = AutoTokenizer.from_pretrained(llama_folder), AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(x):\n\treturn {'naïve': '日本語 🧠'}<|im_end|>"
    assert carried(text)["input_ids"] == source(text)["input_ids"]
    assert carried.decode(carried(text)["input_ids"]) == text
    chat = [{"role": "user", "content": "Hello"}]
    assert carried.apply_chat_template(chat, tokenize=False) == source.apply_chat_template(chat, tokenize=False)
    assert carried.chat_template == checkpoints.CHAT_TEMPLATE


def test_a_class_that_nobody_knows_is_not_written(llama_folder, tmp_path):
    """The source's own tokenizer cannot be loaded: there is nothing to keep."""
    carry_over_tokenizer(llama_folder, tmp_path)
    before = (tmp_path / "tokenizer_config.json").read_bytes()
    (tmp_path / "source").mkdir()
    assert keep_tokenizer_class(tmp_path / "source", tmp_path) is None
    assert (tmp_path / "tokenizer_config.json").read_bytes() == before


LOAD = """
import sys
sys.modules["nexus_transformers"] = None
from transformers import AutoTokenizer, PreTrainedTokenizerFast
converted, trained = sys.argv[1:]
for tokenizer in (
    AutoTokenizer.from_pretrained(converted, trust_remote_code=True),
    PreTrainedTokenizerFast.from_pretrained(converted),
    AutoTokenizer.from_pretrained(trained),
):
    assert tokenizer.decode(tokenizer("a text")["input_ids"]) == "a text"
"""


def test_tokenizers_load_without_our_package_a_question_or_a_warning(llama_folder, tmp_path):
    """
    AutoTokenizer reads config.json first and asks whether its code may run, unless told: whatever the tokenizer is.
    Without that code, the tokenizer loads by its own class.
    """
    convert(llama_folder, tmp_path / "converted", verify=False)
    (tmp_path / "text").write_text("a text " * 10)
    save_tokenizer(train_tokenizer([tmp_path / "text"], 262), tmp_path / "trained")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    process = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "converted", tmp_path / "trained"],
        **{"cwd": tmp_path, "env": environment, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True},
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
