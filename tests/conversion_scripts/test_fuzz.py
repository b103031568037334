"""
Random valid checkpoints, each determined by a number, become the same model and come back.
`NEXUS_FUZZ=500 pytest tests/conversion_scripts/test_fuzz.py` makes so many.
"""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import checkpoints
from damage import assert_same, run
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.conversion_scripts.families import FAMILIES
from nexus_transformers.conversion_scripts.families.spellings import with_old_spellings
from nexus_transformers.conversion_scripts.to_source import convert_to_source

NUMBERS = range(int(os.environ.get("NEXUS_FUZZ", 12)))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROPES = [
    {},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
]
INERT = {
    "use_cache": False,
    "_name_or_path": "somewhere/else",
    "gradient_checkpointing": True,
    "quantization_config": None,
    "torchscript": False,
    "pruned_heads": {},
    "unsloth_version": "2024.9",
    "transformers_version": "4.31.0.dev0",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "output_attentions": False,
    "task_specific_params": None,
}
SETTINGS = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 7,
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": [[5], [6, 7]],
    "max_length": 80,
    "eos_token_id": [2, 0],
}
FILES = {
    "LICENSE": b"Apache",
    "NOTICE.txt": b"notice",
    "README.md": b"---\nlicense: mit\ntags: [a]\n---\n# A model\n",
    "training_args.bin": b"\x80\x04pickle",
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "trainer_state.json": b"{}",
}
TEMPLATES = [
    "{{ messages[0]['content'] }}",
    "{{ raise_exception('no') }}",
    "{% for m in messages %}{{ m }}{% endfor %}",
]


def some(choice: random.Random, items: dict) -> dict:
    return {name: value for name, value in items.items() if choice.random() < 0.3}


def make_source(folder: Path, choice: random.Random) -> str:
    """A random checkpoint that Transformers loads. Returns its family."""
    family = choice.choice(sorted(checkpoints.SHAPES))
    shape = dict(checkpoints.SHAPES[family], tie_word_embeddings=choice.random() < 0.5)
    if family not in ("phi3", "gpt_neox", "esm"):
        rope, change = shape["rope_parameters"], choice.choice(ROPES)
        if "full_attention" in rope:
            shape["rope_parameters"] = {**rope, "full_attention": {**rope["full_attention"], **change}}
        else:
            shape["rope_parameters"] = {**rope, **change}
    model = checkpoints.make(family, DTYPES[choice.choice(list(DTYPES))], **shape)
    checkpoints.write(model, folder, choice.choice(["5GB", "40KB"]))
    config = json.loads((folder / "config.json").read_text())
    if choice.random() < 0.5:  # the spelling of Transformers 4
        old = with_old_spellings(config)
        config = {name: value for name, value in old.items() if name not in ("rope_parameters", "dtype")}
    said = choice.choice([None, "same", *DTYPES])
    if said != "same":
        for name in ("dtype", "torch_dtype"):
            if name in config:
                config[name] = said
    settings = some(choice, SETTINGS)
    where = choice.choice(["file", "config", "nowhere"])
    (folder / "generation_config.json").unlink(missing_ok=True)
    if where == "file":
        (folder / "generation_config.json").write_text(json.dumps(settings | {"max_length": 80}))
    config |= some(choice, INERT) | (settings if where == "config" else {})
    (folder / "config.json").write_text(json.dumps(config))
    if choice.random() < 0.2:
        for file in folder.glob("tokenizer*"):
            file.unlink()
        (folder / "chat_template.jinja").unlink()
    elif choice.random() < 0.5:
        (folder / "chat_template.jinja").write_text(choice.choice(TEMPLATES))
    for name, content in some(choice, FILES).items():
        (folder / name).write_bytes(content)
    return family


def nesting(choice: random.Random) -> dict:
    inner = choice.choice(["shared", "separate", "self"])
    options = {"inner_attention": inner, "order": 2 if inner == "separate" else choice.choice([1, 2, 3])}
    if inner != "self" and options["order"] > 1:
        options["inner_output_projection"] = choice.choice([None, True])
        options["refine"] = choice.choice([["query"], ["query", "key"], ["query", "key", "value"]])
    return options


@pytest.mark.parametrize("number", NUMBERS)
def test_a_random_checkpoint_becomes_the_same_model_and_comes_back(number, tmp_path):
    choice = random.Random(number)
    source, out, back = tmp_path / "source", tmp_path / "out", tmp_path / "back"
    family = make_source(source, choice)
    rounds = FAMILIES[family].rounds
    convert(source, out, verify=False, **nesting(choice))
    expected = run(source, rounds)
    assert_same(expected, run(out, rounds), rounds)
    convert_to_source(out, back, verify=False)
    assert_same(expected, run(back, rounds), rounds=False)
    weights = [
        {
            checkpoints.new_name(name): tensor
            for file in folder.glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }
        for folder in (source, back)
    ]
    assert all(torch.equal(weight, weights[0][name]) for name, weight in weights[1].items())
    if (source / "LICENSE").exists():
        assert (out / "LICENSE").read_bytes() == (source / "LICENSE").read_bytes()
