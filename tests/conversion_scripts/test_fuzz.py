"""
Random checkpoints, each determined by a number: valid ones become the same model and come back, damaged ones end in one
sentence and leave nothing. `NEXUS_FUZZ=500 pytest tests/conversion_scripts/test_fuzz.py` makes so many of each.
"""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import checkpoints
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.conversion_scripts.families import FAMILIES
from nexus_transformers.conversion_scripts.families.spellings import with_old_spellings
from nexus_transformers.conversion_scripts.to_source import convert_to_source

NUMBERS = range(int(os.environ.get("NEXUS_FUZZ", 12)))
ids = torch.arange(3, 43)[None]
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
    if family not in ("phi3", "gpt_neox"):
        shape["rope_parameters"] = {**shape["rope_parameters"], **choice.choice(ROPES)}
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
    (folder / "generation_config.json").unlink()
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


def run(folder: Path, fused: bool) -> dict:
    """What anyone sees of a model."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    torch.manual_seed(0)
    seen = {"dtype": model.dtype, "logits": model(ids).logits.float()}
    if not fused:  # another rounding may choose another token
        seen["generated"] = attempt(lambda: model.generate(ids, max_new_tokens=6, pad_token_id=0).tolist())
    if (folder / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        seen["tokens"] = tokenizer("  Some text, and 1 + 1 = 2\n")["input_ids"]
        seen["template"] = tokenizer.chat_template
    return seen


def attempt(what):
    """Its result; or what it raises, as a model with enormous weights may, on either side."""
    try:
        return what()
    except Exception as error:
        return repr(error)


def assert_same(expected: dict, actual: dict, fused: bool) -> None:
    expected, actual = dict(expected), dict(actual)
    one, other = expected.pop("logits"), actual.pop("logits")
    one, other = torch.nan_to_num(one), torch.nan_to_num(other)  # of weights that were damaged into enormous ones
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}[expected["dtype"]] * fused
    assert (one - other).abs().max() <= tolerance * one.abs().max()
    assert expected == actual


@pytest.mark.parametrize("number", NUMBERS)
def test_a_random_checkpoint_becomes_the_same_model_and_comes_back(number, tmp_path):
    choice = random.Random(number)
    source, out, back = tmp_path / "source", tmp_path / "out", tmp_path / "back"
    family = make_source(source, choice)
    fused = FAMILIES[family].fused
    convert(source, out, verify=False, **nesting(choice))
    expected = run(source, fused)
    assert_same(expected, run(out, fused), fused)
    convert_to_source(out, back, verify=False)
    assert_same(expected, run(back, fused), fused=False)
    weights = [
        dict(pair for file in folder.glob("*.safetensors") for pair in load_file(file).items())
        for folder in (source, back)
    ]
    assert all(torch.equal(weight, weights[0][name]) for name, weight in weights[1].items())
    if (source / "LICENSE").exists():
        assert (out / "LICENSE").read_bytes() == (source / "LICENSE").read_bytes()


# ---- damaged ----

ODD = [None, True, -1, 0, 1e308, float("nan"), 2**63, "", "x" * 5000, [], [[]], {}, {"a": 1}, "\x1b[31m", "../../x"]


def damage(folder: Path, choice: random.Random) -> str:
    """Changes one file, and says how."""
    file = choice.choice(sorted(file for file in folder.iterdir() if file.is_file()))
    kind = choice.choice(["bytes", "cut", "insert", "empty", "json", "json", "json", "tensor"])
    content = file.read_bytes()
    if kind == "json" and file.suffix == ".json":
        value = json.loads(content)
        here = value
        while True:  # somewhere in it
            key = choice.choice(sorted(here) if isinstance(here, dict) else range(len(here)))
            if not (isinstance(here[key], dict | list) and here[key]) or choice.random() < 0.4:
                break
            here = here[key]
        if choice.random() < 0.2:
            del here[key]
            how = "removed"
        else:
            here[key] = choice.choice(ODD)
            how = f"= {here[key]!r}"[:60]
        file.write_text(json.dumps(value))
        return f"{file.name}: {key} {how}"
    if kind == "tensor" and file.suffix == ".safetensors":
        tensors = load_file(file)
        name = choice.choice(sorted(tensors))
        tensors[name] = choice.choice(
            [tensors[name].flatten(), tensors[name] * float("nan"), tensors[name].to(torch.int32), tensors[name][:1]]
        )
        save_file(tensors, file, metadata={"format": "pt"})
        return f"{file.name}: {name}"
    place = choice.randrange(len(content))
    changed = {
        "cut": content[:place],
        "insert": content[:place] + bytes(choice.randrange(256) for _ in range(8)) + content[place:],
        "empty": b"",
    }.get(kind, content[:place] + bytes([content[place] ^ (1 << choice.randrange(8))]) + content[place + 1 :])
    file.write_bytes(changed)
    return f"{file.name}: {kind} at {place}"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_damaged_checkpoint_ends_in_one_sentence_or_is_the_same_model(number, llama_folder, tmp_path, nexus):
    choice = random.Random(number)
    source, out = Path(shutil.copytree(llama_folder, tmp_path / "source")), tmp_path / "out"
    how = damage(source, choice)
    status, output, errors = nexus("convert", source, out, "--no-verify")
    if status == 0:
        assert_same(run(source, fused=False), run(out, fused=False), fused=False)
        return
    assert (status, output) == (1, ""), how
    assert errors.startswith("error: ") and errors.count("\n") == 1 and "Traceback" not in errors, f"{how}\n{errors}"
    assert errors[:-1].isprintable(), f"{how}\n{errors!r}"
    assert [path.name for path in tmp_path.iterdir()] == ["source"], how
