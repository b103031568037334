"""
Damaged checkpoints: one file of a folder changed, by chance, in its bytes or in what it says; and what anyone sees of a
model, to tell whether the damage was one.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

EVIL = "\x1b[31m\u202e\nerror: forged"
ODD = [
    None,
    True,
    -1,
    0,
    1,
    7,
    0.5,
    48.0,
    1e308,
    float("nan"),
    float("inf"),
    2**31,
    2**63,
    -(2**63) - 1,
    10**40,
    10**400,
]
ODD += ["", "x", "x" * 5000, "\ud800", EVIL, "../../x", "/etc/passwd", "{{ 1/0 }}", "{% if %}", "$\\frac{$", "[red]"]
ODD += [[], [[]], [[1]], [None], [2**63], ["a", 1], {}, {"a": 1}, {"": None}, {"rope_type": 7}, {"rope_type": "yarn"}]
ODD += [{"rope_type": "linear", "factor": "0"}, {"rope_type": "dynamic", "factor": 0, "rope_theta": 0}]
CARDS = [
    "---\ntags: 7\n---\n",
    "---\ntags: {a: 1}\n---\n",
    "---\ntags: [[a], {b: c}, null]\nlicense: mit\n---\n",
    "---\nlicense: [mit, {a: 1}]\nlanguage: 7\n---\n",
    "---\nlicense: {a: 1}\ndatasets: {a: 1}\n---\n",
    "---\nlicense: 7\nlicense_link: 7\nlicense_name: [1]\n---\n",
    '---\nlicense: "\\ud800\\e[31m"\nlicense_link: [a]\n---\n',
    "---\n1: a\nself: b\n? [a]\n: c\n---\n",
    "---\nself: b\nlicense: mit\n---\n",
    "---\nlanguage: [no, false, 7, {a: b}]\nbase_model: {a: 1}\n---\n",
    "---\nmodel-index: 7\neval_results: 7\n---\n",
    "---\nmodel-index: [{name: 7, results: [{}]}]\n---\n",
    "---\n- a\n- b\n---\n",
    "---\njust text\n---\n",
    "---\nlicense: mit\n  tags: [a\n---\n",
    "---\na: &a [*a]\nlicense: *a\n---\n",
    "---\na: !!python/object/apply:os.system [ls]\n---\n",
    "---\ndate: 2001-01-01\nlicense: 2001-01-01\nlanguage: 2001-01-01\n---\n",
    "---\nlicense: " + "[" * 5000 + "\n---\n",
    "---\nlicense: " + "{a: " * 5000 + "\n---\n",
    "---\nlicense: " + "x" * 10**5 + "\n---\n",
    "---\na: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nlicense: *c\ndatasets: *c\n---\n",
    "---\nlicense: mit\n---\n{{ 1/0 }} {% if %}\n",
    "---",
]


def damage(folder: Path, choice: random.Random) -> str:
    """Changes one file, and says how."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    file = choice.choice(files + 4 * [folder / "config.json"])  # which decides most
    possible = [change_bytes]
    if file.suffix == ".json":
        possible += [change_json] * 4
    if file.suffix == ".safetensors":
        possible += [change_tensor, change_header]
    if file.suffix == ".jinja":
        possible += [change_template]
    if file.name == "README.md":
        possible += [change_card] * 4
    return f"{file.name}: {choice.choice(possible)(file, choice)}"


def change_bytes(file: Path, choice: random.Random) -> str:
    content = file.read_bytes()
    kind, place = choice.choice(["flip", "cut", "insert", "empty"]), choice.randrange(len(content) + 1)
    if kind == "flip":
        place = min(place, len(content) - 1)
        content = content[:place] + bytes([content[place] ^ (1 << choice.randrange(8))]) + content[place + 1 :]
    elif kind == "insert":
        content = content[:place] + bytes(choice.randrange(256) for _ in range(8)) + content[place:]
    else:
        content = content[: place if kind == "cut" else 0]
    file.write_bytes(content)
    return f"{kind} at {place}"


def change_json(file: Path, choice: random.Random) -> str:
    value = json.loads(file.read_bytes())
    how = change_value(value, choice)
    file.write_text(json.dumps(value))
    return how


def change_value(value: dict | list, choice: random.Random) -> str:
    """One entry, somewhere in it."""
    while True:
        key = choice.choice(sorted(value) if isinstance(value, dict) else range(len(value)))
        if not (isinstance(value[key], dict | list) and value[key]) or choice.random() < 0.4:
            break
        value = value[key]
    how = choice.random()
    if how < 0.15:
        del value[key]
        return f"{key!r} removed"
    if how < 0.25 and isinstance(value, dict):
        value[choice.choice([EVIL, "self", "args", "", "x" * 300])] = value.pop(key)
        return f"{key!r} renamed"
    value[key] = choice.choice(ODD)
    return f"{key!r} = {value[key]!r}"[:100]


def change_header(file: Path, choice: random.Random) -> str:
    """What a safetensors file says of its tensors."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    how = change_value(header, choice)
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[end:])
    return how


def change_tensor(file: Path, choice: random.Random) -> str:
    tensors = load_file(file)
    name = choice.choice(sorted(tensors))
    tensor = tensors[name]
    changed: list[Callable[[], torch.Tensor]] = [
        lambda: tensor.flatten(),
        lambda: tensor * float("nan"),
        lambda: tensor.to(torch.int32),
        lambda: tensor[:1],
        lambda: tensor[:0],
        lambda: tensor.sum(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to(torch.float8_e4m3fn),
    ]
    number = choice.randrange(len(changed))
    tensors[name] = changed[number]().clone()
    save_file(tensors, file, metadata={"format": "pt"})
    return f"{name} changed in way {number}"


def change_template(file: Path, choice: random.Random) -> str:
    file.write_text(choice.choice(["{% if %}", "{{ 1/0 }}", "{{ messages[9].x.y }}", "{% for a in a %}", "}}{{"]))
    return "another template"


def change_card(file: Path, choice: random.Random) -> str:
    number = choice.randrange(len(CARDS))
    file.write_text(CARDS[number])
    return f"card {number}"


# What anyone sees of a model

ids = torch.arange(3, 43)[None]


def run(folder: Path, rounds: bool) -> dict:
    """What anyone sees of a model."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    is_encoder = "MaskedLM" in str(config.architectures)
    auto_class = AutoModelForMaskedLM if is_encoder else AutoModelForCausalLM
    model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
    torch.manual_seed(0)
    seen = {"dtype": model.dtype, "logits": model(ids).logits.float()}
    if not (rounds or is_encoder):  # another rounding may choose another token
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


def assert_same(expected: dict, actual: dict, rounds: bool) -> None:
    expected, actual = dict(expected), dict(actual)
    one, other = expected.pop("logits"), actual.pop("logits")
    one, other = torch.nan_to_num(one), torch.nan_to_num(other)  # of weights that were damaged into enormous ones
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}[expected["dtype"]] * rounds
    assert (one - other).abs().max() <= tolerance * one.abs().max()
    assert expected == actual
