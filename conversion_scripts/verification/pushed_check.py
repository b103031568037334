"""
The half of `nexus push` that runs in a fresh process: downloads the pushed commit, loads it with torch and transformers
alone, as anyone would, and compares it with the folder that was pushed. It runs as a copy in an empty folder (see
isolated.py), so it imports nothing of its neighbours.

usage: python pushed_check.py REQUEST.json RESULT.json
"""

import hashlib
import json
import sys
from pathlib import Path

sys.modules["nexus_transformers"] = None  # importing our package fails from here on: the repository must stand alone

import torch  # noqa: E402
import transformers  # noqa: E402
from huggingface_hub import snapshot_download  # noqa: E402
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, logging  # noqa: E402

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


def config_of(where: dict) -> dict:
    config = AutoConfig.from_pretrained(**where, trust_remote_code=True).to_dict()
    return {name: value for name, value in config.items() if name not in ("_name_or_path", "_commit_hash", "auto_map")}


def encode(tokenizer: PreTrainedTokenizerBase) -> list:
    chat = [{"role": "user", "content": TEXT}]
    template = tokenizer.apply_chat_template(chat, tokenize=False) if tokenizer.chat_template else None
    return [tokenizer(TEXT)["input_ids"], template]


@torch.inference_mode()
def outputs_of(where: dict, auto_class: str, ids: list[int]) -> torch.Tensor:
    model = getattr(transformers, auto_class).from_pretrained(**where, trust_remote_code=True).eval()
    return model(torch.tensor([ids]))[0]


def main(request: dict) -> dict:
    pushed = {"pretrained_model_name_or_path": request["repo_id"], "revision": request["revision"]}
    local = {"pretrained_model_name_or_path": request["folder"]}
    files = request["files"]
    folder = snapshot_download(request["repo_id"], revision=request["revision"], allow_patterns=list(files))
    result = {"files": len(files), "tokenizer": "tokenizer_config.json" in files}
    result["differences"] = differences = files_that_differ(Path(folder), files)
    if differences:
        return result  # other code than was sent is not run
    config = config_of(local)
    if config_of(pushed) != config:
        differences.append("the config")
    ids = torch.randint(config["vocab_size"], (LENGTH,), generator=torch.Generator().manual_seed(0)).tolist()
    if result["tokenizer"]:
        one, other = (
            encode(AutoTokenizer.from_pretrained(**where, trust_remote_code=True)) for where in (pushed, local)
        )
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
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
