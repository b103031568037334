"""
The half of `nexus push` that runs in a fresh process: downloads the pushed commit, loads it with torch and transformers
alone, as anyone would, and compares it with the folder that was pushed. It runs as a copy in an empty folder (see
isolated.py), so it imports nothing of our package.

usage: python pushed_check.py REQUEST.json RESULT.json
"""

import hashlib
import json
import sys
from pathlib import Path

sys.modules["nexus_transformers"] = None  # importing our package fails from here on: the repository must stand alone

if __name__ == "__main__":  # only then these lie beside it
    from isolated_parent import end_with_parent

    from bounded import Exceeded, bounded, step

    end_with_parent()

import torch  # noqa: E402
import transformers  # noqa: E402
from huggingface_hub import snapshot_download  # noqa: E402
from transformers import AutoConfig, AutoTokenizer, logging  # noqa: E402

logging.set_verbosity_error()
logging.disable_progress_bar()

TEXT = "The capital of France is Paris.\n\tdef f(n):  return n * 3.14 # Zażółć gęślą jaźń, 中文, 🧠"
LENGTH = 64


def files_that_differ(folder: Path, expected: dict[str, dict]) -> list[str]:
    differences = []
    for name, description in expected.items():
        if not (folder / name).is_file():
            differences.append(f"{name} is missing")
            continue
        with (folder / name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
        if digest.hexdigest() != description["sha256"]:
            differences.append(f"{name} has another sha256")
    return differences


def config_of(folder: str) -> dict:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True).to_dict()
    return {name: value for name, value in config.items() if name not in ("_name_or_path", "_commit_hash", "auto_map")}


def encode(folder: str) -> list:
    """Runs in a process that may use little time and memory."""
    step("tokenizer.json: loading this tokenizer")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    step("tokenizer.json: tokenizing text with it")
    ids = tokenizer(TEXT)["input_ids"]
    step("chat_template.jinja: rendering a chat with it")
    chat = [{"role": "user", "content": TEXT}]
    return [ids, tokenizer.apply_chat_template(chat, tokenize=False) if tokenizer.chat_template else None]


@torch.inference_mode()
def outputs_of(folder: str, auto_class: str, ids: list[int]) -> torch.Tensor:
    # Named, as config.json may name a kernel on the Hub, which is code.
    model_class = getattr(transformers, auto_class)
    model = model_class.from_pretrained(folder, attn_implementation="sdpa", trust_remote_code=True).eval()
    return model(torch.tensor([ids]))[0]


def main(request: dict) -> dict:
    local, files = request["folder"], request["files"]
    # Loaded from this folder, not by name: the repository may hold more, and code that was not sent is not run.
    pushed = snapshot_download(request["repo_id"], revision=request["revision"], allow_patterns=list(files))
    result = {"files": len(files), "tokenizer": "tokenizer_config.json" in files}
    result["differences"] = differences = files_that_differ(Path(pushed), files)
    if differences:
        return result  # other code than was sent is not run
    config = config_of(local)
    if config_of(pushed) != config:
        differences.append("the config")
    ids = torch.randint(config["vocab_size"], (LENGTH,), generator=torch.Generator().manual_seed(0)).tolist()
    if result["tokenizer"]:
        one, other = (bounded(encode, folder) for folder in (pushed, local))
        if one != other:
            differences.append("the tokenizer's output")
        ids = other[0][:LENGTH] or ids
    if request["load_weights"]:
        expected = outputs_of(local, request["auto_class"], ids)
        actual = outputs_of(pushed, request["auto_class"], ids)
        result["positions"] = len(ids)
        if not torch.equal(expected, actual):
            differences.append(f"the outputs, by up to {(expected - actual).abs().max().item():.3g}")
    return result


if __name__ == "__main__":
    try:
        answer = main(json.loads(Path(sys.argv[1]).read_text()))
    except Exceeded as error:
        answer = {"differences": [f"could not be compared: {error}"]}
    Path(sys.argv[2]).write_text(json.dumps(answer))
