"""The converted models that experiments start from: SmolLM2-135M-Instruct, or a toy for quick runs."""

import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from common.texts import smollm2
from nexus_transformers.tokenization import CHAT_TEMPLATES, config_fields, train_tokenizer

from .runs import ROOT


def convert(name: str, folder: Path) -> None:
    """
    Writes `folder`/model, unless it is there with today's code: order 2 in every layer, with closed gates.

    Args:
        name: "smollm2", downloaded, or "toy", a random Llama, converted just as really.
    """
    if is_current(folder / "model"):
        return
    shutil.rmtree(folder / "model", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    source = smollm2() if name == "smollm2" else toy_source(folder / "source")
    nexus = Path(sys.executable).with_name("nexus")
    checked = [] if name == "smollm2" else ["--no-verify"]  # the toy: its verification is tested elsewhere
    if subprocess.run([nexus, "convert", source, folder / "model", "--order", "2", *checked]).returncode != 0:
        sys.exit(f"{name} could not be converted; see the message above.")


def is_current(model: Path) -> bool:
    """Whether the folder has a model whose own code is that of this version."""
    code = {file.name: file.read_bytes() for file in model.glob("*.py")}
    return bool(code) and code == {
        file.name: file.read_bytes() for file in ROOT.parent.glob("*.py") if file.name in code
    }


def toy_source(folder: Path) -> Path:
    """A tiny random Llama with a tokenizer that chats."""
    files = [folder / f"{name}.txt" for name in ("class", "exceptions")]
    folder.mkdir(exist_ok=True)
    for file in files:
        file.write_text(topics[file.stem])
    write_toy(folder, "llama", 3, train_tokenizer(files, 384, CHAT_TEMPLATES["chatml"]))
    return folder


def write_toy(folder: Path, model_type: str, layers: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tiny random model with this tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        **config_fields(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,  # far from uniform attention
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
