"""
The half of `nexus verify` that runs in a fresh process: source and result loaded as a stranger would load them, with
torch and transformers alone, and compared as functions. `verify.py` copies this file to an empty folder and runs it
there, so it imports nothing of its neighbours.

usage: python isolated_check.py REQUEST.json RESULT.json
"""

import json
import re
import resource
import sys
import time
from itertools import zip_longest
from pathlib import Path

sys.modules["nexus_transformers"] = None  # importing our package fails from here on: the folder must stand alone

from pydoc_data.topics import topics  # noqa: E402

import torch  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, logging  # noqa: E402

logging.set_verbosity_error()
logging.disable_progress_bar()

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n\tif n < 2:\n        return n\n",
    "  Leading, double  and trailing spaces  \n\n",
    "Zażółć gęślą jaźń. Ελληνικά, русский, العربية, 中文, 日本語, 한국어, emoji 🧠🔁.",
    "1 + 1 = 2, 3.14159e-10; <|im_start|>user</s><s>[INST]",
    "",
]
TOPICS = ["class", "exceptions", "operator-summary", "typesseq-common", "execmodel", "lambda"]
PASSAGES, LENGTH, NEW_TOKENS = 4, 256, 24
LAYERWISE = 2, 32, 3  # the same, where every pass reads all weights from the disk


def passages(tokenizer, vocab_size: int, count: int, length: int) -> list[list[int]]:
    """Real English text (Python's own documentation, which every Python carries); without a tokenizer, random ids."""
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(vocab_size, (count, length), generator=generator).tolist()
    text = [topics[topic] for topic in TOPICS if topic in topics] + [" ".join(topics.values())]
    tokens = [tokenizer(passage)["input_ids"][:length] for passage in text]
    return [ids for ids in tokens if len(ids) > 1][:count]


def chat(tokenizer) -> str | None:
    if tokenizer is None or not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@torch.inference_mode()
def logits_of(model, batches: list[list[int]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """
    Logits of each passage alone, and, last, of the first two together with the second one padded on the left. Also the
    hidden states of the first passage, before the first layer and after every layer.
    """
    first = model(torch.tensor(batches[:1]), output_hidden_states=True)
    outputs = [first.logits[0], *(model(torch.tensor([ids])).logits[0] for ids in batches[1:])]
    if len(batches) > 1:
        longer, shorter = batches[0], batches[1][: len(batches[0]) // 2]
        padding = len(longer) - len(shorter)
        mask = torch.ones(2, len(longer), dtype=torch.long)
        mask[1, :padding] = 0
        ids = torch.tensor([longer, [0] * padding + shorter])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        padded = model(ids, attention_mask=mask, position_ids=positions).logits
        outputs += [padded[0], padded[1, padding:]]
    return outputs, [state[0] for state in first.hidden_states]


@torch.inference_mode()
def greedy(model, prompt: list[int], new_tokens: int, use_cache: bool = True) -> tuple[list[int], float]:
    """The greedy continuation and the tokens per second that it took."""
    ids = torch.tensor([prompt])
    start = time.perf_counter()
    options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0, "use_cache": use_cache}
    continuation = model.generate(ids, **options)[0, len(prompt) :]
    return continuation.tolist(), len(continuation) / (time.perf_counter() - start)


def first_difference_of_states(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> int | None:
    """The number of the first decoder layer, from 0, whose output differs; -1 if already its input does."""
    pairs = enumerate(zip(expected, actual, strict=True))
    return next((number - 1 for number, (one, other) in pairs if not torch.equal(one, other)), None)


def compare(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> dict:
    """max |delta logit|, mean KL in nats, and where the first difference is."""
    largest, largest_logit, kl, count, first = 0.0, 0.0, 0.0, 0, None
    for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
        one, other = one.double(), other.double()
        difference = (one - other).abs().amax(-1)
        if not torch.isfinite(difference).all():
            difference = torch.nan_to_num(difference, nan=float("inf"))
        largest = max(largest, difference.max().item())
        largest_logit = max(largest_logit, one.abs().max().item())
        divergence = (one.softmax(-1) * (one.log_softmax(-1) - other.log_softmax(-1))).sum(-1)
        kl, count = kl + divergence.sum().item(), count + len(divergence)
        if first is None and difference.any():
            first = {"passage": number, "position": difference.nonzero()[0].item()}
    return {
        "max_abs_logit_difference": largest,
        "max_abs_logit": largest_logit,
        "mean_kl": kl / count,
        "positions": count,
        "first_difference": first,
    }


@torch.no_grad()
def swap_heads(model) -> str | None:
    """Swaps the weights of two query heads, of different key/value groups if there are several; None if it cannot."""
    config = model.config
    if config.num_attention_heads < 2:
        return None
    layer = middle_layer(config)
    weight = model.get_parameter(f"model.layers.{layer}.self_attn.q_proj.weight")
    heads = weight.view(config.num_attention_heads, config.head_dim, -1)
    one, other = 0, config.num_attention_heads - 1
    heads[[one, other]] = heads[[other, one]]
    return f"query heads {one} and {other} of layer {layer} swapped"


def load(request: dict, folder: str, trust_remote_code: bool, **kwargs) -> PreTrainedModel:
    if request["layer_by_layer"]:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **kwargs)
        kwargs["device_map"] = device_map(config)
    return AutoModelForCausalLM.from_pretrained(
        folder,
        trust_remote_code=trust_remote_code,
        dtype=getattr(torch, request["dtype"]),
        attn_implementation=request["attn_implementation"],
        **kwargs,
    ).eval()


def device_map(config) -> dict[str, str]:
    """
    Every matrix stays on the disk: Transformers reads it from the checkpoint when it is used, and lets go of it. Only
    the layer in the middle is kept in memory, where a control changes its heads, and so are norms and gates.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    middle = f".layers.{middle_layer(config)}."
    return {
        name: "disk" if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and middle not in name else "cpu"
        for name, module in model.named_modules()
        if not list(module.children())
    }


def middle_layer(config) -> int:
    return getattr(config, "num_layers", config.num_hidden_layers) // 2  # of Nexus, of others


def middle_gate(names: list[str]) -> str:
    """Of the layer in the middle, the last level's: those below it have no effect while it is closed."""
    layer = names[len(names) // 2].rpartition(".")[0]
    return [name for name in names if name.startswith(f"{layer}.")][-1]


def peak_memory() -> int:
    """Of this process, in bytes. Linux's ru_maxrss would count the process that started this one, too."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(request: dict) -> dict:
    torch.manual_seed(0)
    layer_by_layer = request["layer_by_layer"]
    count, longest, new_tokens = LAYERWISE if layer_by_layer else (PASSAGES, LENGTH, NEW_TOKENS)
    source_kwargs = {"trust_remote_code": False}  # nobody was asked: Transformers' own classes, or none
    if request["gguf_file"]:
        source_kwargs["gguf_file"] = request["gguf_file"]

    tokenizers = []
    for folder, kwargs in ((request["source"], source_kwargs), (request["target"], {"trust_remote_code": True})):
        tokenizers.append(AutoTokenizer.from_pretrained(folder, **kwargs) if request["has_tokenizer"] else None)
    expected_tokenizer, tokenizer = tokenizers
    result = {
        "dtype": request["dtype"],
        "attn_implementation": request["attn_implementation"],
        "layer_by_layer": layer_by_layer,
    }
    for prompt in PROMPTS if tokenizer else []:
        if tokenizer(prompt)["input_ids"] != expected_tokenizer(prompt)["input_ids"]:
            result["tokens_differ"] = prompt
            break
    if chat(tokenizer) != chat(expected_tokenizer):
        result["chat_differs"] = True

    source = load(request, request["source"], **source_kwargs)
    length = min(longest, source.config.max_position_embeddings - new_tokens)
    batches = passages(tokenizer, source.config.vocab_size, count, max(length, 2))
    prompt = tokenizer(chat(tokenizer) or PROMPTS[0])["input_ids"] if tokenizer else batches[0][:8]
    expected, expected_states = logits_of(source, batches)
    expected_continuation, source_speed = greedy(source, prompt, new_tokens)
    result["source_parameters"] = source.num_parameters()
    del source

    order = {} if request["attention_order"] is None else {"attention_order": request["attention_order"]}
    model = load(request, request["target"], trust_remote_code=True, **order)
    gates = model.gates()
    result["parameters"] = model.num_parameters()
    result["gates"] = len(gates)
    result["gates_closed_in_memory"] = sum(gate.item() != 0 for gate in gates.values())
    with torch.no_grad():
        for gate in gates.values():
            gate.zero_()

    actual, states = logits_of(model, batches)
    result |= compare(expected, actual)
    result["first_differing_layer"] = first_difference_of_states(expected_states, states)
    continuation, speed = greedy(model, prompt, new_tokens)
    result["greedy_equal"] = continuation == expected_continuation
    if not result["greedy_equal"]:
        pairs = zip_longest(continuation, expected_continuation)
        result["greedy_first_difference"] = next(n for n, (one, other) in enumerate(pairs) if one != other)
        uncached, _ = greedy(model, prompt, new_tokens, use_cache=False)
        result["greedy_equal_without_cache"] = uncached == expected_continuation
    result["greedy"] = tokenizer.decode(continuation) if tokenizer else continuation
    result["tokens_per_second"] = {"source": round(source_speed, 2), "nexus": round(speed, 2)}

    result["negative_controls"] = {}
    if gates:
        name = middle_gate(list(gates))
        with torch.no_grad():
            gates[name].fill_(0.5)
        opened = compare(expected, logits_of(model, batches)[0])
        result["negative_controls"][f"{name} set to 0.5"] = opened["max_abs_logit_difference"]
        with torch.no_grad():
            gates[name].zero_()
    if what := swap_heads(model):
        result["negative_controls"][what] = compare(expected, logits_of(model, batches)[0])["max_abs_logit_difference"]
    result["peak_memory_bytes"] = peak_memory()
    return result


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
