"""
Nexus models with open gates, served by vLLM on a CPU and compared with Transformers: `make test-serving`.

    serving.py write FOLDER   converted models and one of each arm, with what Transformers makes of some prompts
    serving.py check FOLDER   vLLM, in an environment without our package: it has the folders alone

The kernels sum in another order: log-probabilities may be ten times as far from those in float64 as those of
Transformers in float32 are. Closed gates change them by more than a thousand times that.
"""

import copy
import gc
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "DO_NOT_TRACK": "1"}
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # several models one after the other in one process
os.environ["HF_MODULES_CACHE"] = f"{sys.argv[2]}/modules"  # read at import

FOLDER = Path(sys.argv[2])
TOKENS = 12
TEXTS = [
    "A class definition is an executable statement. The inheritance list gives a list of base classes, and each",
    "A class definition is an executable statement. The inheritance list gives nothing, and",
    "Exceptions are raised",
]
CHAT = [{"role": "user", "content": "What is a class?"}]
REFUSED = {
    "self, grouped heads": "needs as many heads in every slot",
    "queries only": "more than one module",
    "two windows": "knows one window",
}
FAMILIES = "llama mistral qwen2 qwen3 gpt_neox phi3 olmo2 olmo3 gemma3_text granite smollm3 stablelm".split()
SERVED = "llama"  # by the server


def write() -> None:
    import torch
    from arms import ARMS

    import checkpoints
    from nexus_transformers import NexusConfig, NexusForCausalLM
    from nexus_transformers.conversion_scripts.nesting import can_be_served

    # vLLM has a kernel for heads of this size
    shape = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    for family in FAMILIES:
        fields = checkpoints.SHAPES[family]
        own = {name: value for name, value in shape.items() if name in fields}
        source = checkpoints.save(family, FOLDER / "sources" / family, **own)
        command = [Path(sys.executable).with_name("nexus"), "convert", source, FOLDER / family, "--order", "2"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        describe(NexusForCausalLM.from_pretrained(FOLDER / family), FOLDER / family)
    shape |= {"num_layers": 2, "intermediate_size": 128, "vocab_size": checkpoints.VOCAB_SIZE, "inner_gate": True}
    shape |= {"initializer_range": 0.1, "max_position_embeddings": 512, "eos_token_id": 2, "pad_token_id": 2}
    nestings = ARMS | {
        "self": {**ARMS["self"], "num_key_value_heads": 4},
        "self, grouped heads": ARMS["self"],
        "queries only": {"attention_order": 2, "refine_key": False},
        "keys only": {"attention_order": 2, "refine_query": False},
        "first layer, window": {"attention_order": [2, 1], "sliding_window": 16},
        "inner window": {"attention_order": [3, 2], "inner_window": 8},
        "inner window, queries only": {"attention_order": 2, "refine_key": False, "inner_window": 8},
        "two windows": {"attention_order": 2, "sliding_window": 16, "inner_window": 8},
        "order 1": {"attention_order": 1},
    }
    for name, nesting in nestings.items():
        torch.manual_seed(0)
        model = NexusForCausalLM(NexusConfig(**shape | nesting))
        assert can_be_served(model.config) == (name not in REFUSED), "what cards say"
        checkpoints.tokenizer().save_pretrained(FOLDER / name)
        describe(model, FOLDER / name)


def describe(model, folder: Path) -> None:
    """Opens the gates, saves, and keeps what Transformers makes of the prompts."""
    import torch
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder, trust_remote_code=True), model.eval()
    for gate in model.gates().values():
        gate.data.fill_(0.7)
    model.save_pretrained(folder)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    prompts.append(tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)["input_ids"])
    expected = {"prompts": prompts, "logprobs": [], "continuations": [], "tolerance": 1e-5}
    exact = copy.deepcopy(model).double()
    for prompt in prompts:
        ids = torch.tensor([prompt])
        expected["logprobs"].append(logprobs_of(exact, prompt))
        rounding = difference(logprobs_of(model, prompt), expected["logprobs"][-1])
        expected["tolerance"] = max(expected["tolerance"], 10 * rounding)
        generated = model.generate(ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
        expected["continuations"].append(generated[0, len(prompt) :].tolist())
    for gate in model.gates().values():
        gate.data.zero_()
    expected["closed_gates_differ_by"] = difference(logprobs_of(model, prompts[0]), expected["logprobs"][0])
    (folder / "expected.json").write_text(json.dumps(expected))


def logprobs_of(model, prompt: list[int]) -> list[float]:
    """Of each token of the prompt but the first."""
    import torch

    ids = torch.tensor([prompt])
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()


def difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def open_model(name: str, **options):
    from vllm import LLM

    options = {"enforce_eager": True, "enable_prefix_caching": True, "disable_log_stats": True, **options}
    common = {"trust_remote_code": True, "model_impl": "transformers", "dtype": "float32", "max_model_len": 256}
    return LLM(str(FOLDER / name), **common, **options)


def check() -> None:
    import vllm

    assert "nexus_transformers" not in sys.modules
    names = sorted(file.parent.name for file in FOLDER.glob("*/expected.json"))
    for name in names:
        if name not in REFUSED:
            check_offline(name)
    for name, reason in REFUSED.items():
        command = [sys.executable, __file__, "open", FOLDER, name]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode != 0 and reason in process.stderr, f"{name}: {process.stderr[-2000:]}"
        print(f"{name}: refused, as documented", flush=True)
    check_server(SERVED)
    print(f"vLLM {vllm.__version__}: {len(names) - len(REFUSED)} models and the server give Transformers' tokens")


def check_offline(name: str) -> None:
    """All prompts in one batch, and again from the prefix cache."""
    from vllm import SamplingParams

    expected, model = expected_of(name), open_model(name)
    prompts = [{"prompt_token_ids": ids} for ids in expected["prompts"]]
    settings = {"max_tokens": TOKENS, "min_tokens": TOKENS, "temperature": 0}
    scored = model.generate(prompts, SamplingParams(**settings, prompt_logprobs=1), use_tqdm=False)
    largest, tolerance = 0.0, expected["tolerance"]
    for output, ids, logprobs in zip(scored, expected["prompts"], expected["logprobs"], strict=True):
        found = [step[token].logprob for step, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
        largest = max(largest, difference(found, logprobs))
    assert largest < tolerance, f"{name}: log-probabilities differ by {largest:.1e}, more than {tolerance:.1e}"
    nested = name != "order 1"
    assert (expected["closed_gates_differ_by"] > 1000 * tolerance) is nested, f"{name}: this would not see a mistake"
    for outputs in (scored, *(model.generate(prompts, SamplingParams(**settings), use_tqdm=False) for _ in range(2))):
        assert [list(output.outputs[0].token_ids) for output in outputs] == expected["continuations"], name
    print(f"{name}: log-probabilities within {largest:.1e} of {tolerance:.1e}, same tokens", flush=True)
    del model
    gc.collect()


def expected_of(name: str) -> dict:
    return json.loads((FOLDER / name / "expected.json").read_text())


def check_server(name: str) -> None:
    """The OpenAI-compatible server, compiled, with a real client: completions in a batch, a chat, a stream."""
    from openai import OpenAI
    from transformers import AutoTokenizer

    expected = expected_of(name)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name, trust_remote_code=True)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected["continuations"]]
    exactly = {"max_tokens": TOKENS, "temperature": 0, "extra_body": {"min_tokens": TOKENS}}
    with server(FOLDER / name) as address:
        client = OpenAI(base_url=f"{address}/v1", api_key="none")
        (served,) = client.models.list().data
        answer = client.completions.create(model=served.id, prompt=expected["prompts"], **exactly)
        assert [choice.text for choice in answer.choices] == texts
        answer = client.chat.completions.create(model=served.id, messages=CHAT, **exactly)
        assert answer.choices[0].message.content == texts[-1]
        stream = client.chat.completions.create(model=served.id, messages=CHAT, stream=True, **exactly)
        parts = [part.choices[0].delta.content or "" for part in stream if part.choices]
        assert len(parts) > 3 and "".join(parts) == texts[-1]
    print(f"{name}: the server answers a batch, a chat and a stream", flush=True)


@contextmanager
def server(folder: Path):
    """Yields its address, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--trust-remote-code"]
    command += ["--model-impl", "transformers", "--dtype", "float32", "--max-model-len", "256"]
    command += ["--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
    process = subprocess.Popen(list(map(str, command)))
    try:
        for _ in range(600):
            assert process.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(f"{address}/health").close()
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    actions = {"write": write, "check": check, "open": lambda: open_model(sys.argv[3])}
    actions[sys.argv[1]]()
