"""
The half of `nexus verify` that runs in a fresh process: source and result loaded as a stranger would load them, with
torch and transformers alone, and compared as functions. `isolated.py` copies it and what it imports to an empty folder
and runs it there, so they import nothing of our package.

usage: python isolated_check.py REQUEST.json RESULT.json
"""

import json
import re
import resource
import sys
import time
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

sys.modules["nexus_transformers"] = None  # importing our package fails from here on: the folder must stand alone

sys.path.insert(0, str(Path(__file__).parent))  # for the files beside it

if __name__ == "__main__":  # only then they lie there
    from isolated_parent import end_with_parent

    from bounded import Exceeded, bounded, step

    end_with_parent()

import isolated_probes as probes  # noqa: E402
import torch  # noqa: E402
from isolated_controls import controls, from_the_middle  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoTokenizer,
    GenerationConfig,
    logging,
)

logging.set_verbosity_error()
logging.disable_progress_bar()

# Where a tokenizer and a chat template may lie, for messages
TOKENIZER = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")
TEMPLATE = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


@torch.inference_mode()
def logits_of(model, batches: list[list[int]], long: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """
    Logits of each passage alone, then of the first two together with the second one padded on the left, of an encoder
    on the right too, and the last ones of the long passage. Also the hidden states of the first passage, before the
    first layer and after every layer.
    """
    first = model(torch.tensor(batches[:1]), output_hidden_states=True, return_dict=True)
    outputs = [first.logits[0]]
    outputs += [model(torch.tensor([ids]), return_dict=True).logits[0] for ids in batches[1:]]
    longer, shorter = batches[0], batches[1][: len(batches[0]) // 2]
    padding = len(longer) - len(shorter)
    for left in (padding,) if model.can_generate() else (padding, 0):
        row = [0] * left + shorter + [0] * (padding - left)
        mask = torch.ones(2, len(longer), dtype=torch.long)
        mask[1] = 0
        mask[1, left : left + len(shorter)] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        padded = model(
            torch.tensor([longer, row]), attention_mask=mask, position_ids=positions, return_dict=True
        ).logits
        outputs += [padded[0], padded[1, mask[1].bool()]]
    if long:
        kept = 2 * probes.BEYOND
        kwargs = {"logits_to_keep": kept} if model.can_generate() else {}
        outputs.append(model(torch.tensor([long]), return_dict=True, **kwargs).logits[0, -kept:])
    return outputs, [state[0] for state in first.hidden_states]


@torch.inference_mode()
def greedy(
    model, prompt: list[int], new_tokens: int, eos: int | list[int] | None, use_cache: bool = True
) -> tuple[list[int], float]:
    """
    The greedy continuation and the tokens per second that it took. Settings of the model's own, which may ask for
    other inputs or outputs, are left out.
    """
    model.generation_config = GenerationConfig(eos_token_id=eos)
    ids = torch.tensor([prompt])
    start = time.perf_counter()
    options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0, "use_cache": use_cache}
    continuation = model.generate(ids, **options)[0, len(prompt) :]
    return continuation.tolist(), len(continuation) / (time.perf_counter() - start)


def settings(model) -> dict:
    """How it generates by default, if it does."""
    if not model.can_generate():
        return {}
    unset = ("transformers_version", "_from_model_config", "_commit_hash")
    return {name: value for name, value in model.generation_config.to_dict().items() if name not in unset}


def first_difference_of_states(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> int | None:
    """The number of the first decoder layer, from 0, whose output differs; -1 if already its input does."""
    pairs = enumerate(zip(expected, actual, strict=True))
    return next((number - 1 for number, (one, other) in pairs if not torch.equal(one, other)), None)


def compare(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> dict:
    """
    max |delta logit|, mean KL in nats, and where the first difference is. Logits that are the same infinity or NaN on
    both sides are equal, and counted.
    """
    largest, largest_logit, kl, count, first, not_finite = 0.0, 0.0, 0.0, 0, None, 0
    for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
        one, other = one.double(), other.double()
        same = ~torch.isfinite(one) & torch.isclose(one, other, rtol=0, atol=0, equal_nan=True)
        not_finite += same.sum().item()
        one, other = one.masked_fill(same, 0.0), other.masked_fill(same, 0.0)
        difference = (one - other).abs().amax(-1)
        if not torch.isfinite(difference).all():
            difference = torch.nan_to_num(difference, nan=torch.finfo(difference.dtype).max)  # JSON has no infinity
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
        "not_finite": not_finite,
    }


def load(request: dict, folder: str, trust_remote_code: bool, **kwargs):
    if "gguf_file" in kwargs:  # whose reader leaves out some rotary settings
        kwargs["config"] = AutoConfig.from_pretrained(folder, trust_remote_code=False, **kwargs)
        kwargs["config"].rope_parameters = request["rope_parameters"]
    of_images_too = request["of_images_too"] and folder == request["source"]
    auto_class = AutoModelForImageTextToText if of_images_too else AutoModelForCausalLM
    if request["is_encoder"]:
        auto_class = AutoModelForMaskedLM
    if request["layer_by_layer"]:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **kwargs)
        kwargs["device_map"] = device_map(auto_class, config, request["attn_implementation"], trust_remote_code)
    model = auto_class.from_pretrained(
        folder,
        trust_remote_code=trust_remote_code,
        dtype=getattr(torch, request["dtype"]),
        attn_implementation=request["attn_implementation"],
        **kwargs,
    ).eval()
    # What its config.json asks to return by default is not compared.
    model.config.return_dict, model.config.output_hidden_states, model.config.output_attentions = True, False, False
    return model


def device_map(auto_class, config, attn_implementation: str, trust_remote_code: bool) -> dict[str, str]:
    """
    Every matrix stays on the disk: Transformers reads it from the checkpoint when it is used, and lets go of it. Only
    the layer in the middle is kept in memory, where a control changes its heads, and so are norms and gates.
    """
    with torch.device("meta"):
        model = auto_class.from_config(
            config, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code
        )
    middle = f".layers.{from_the_middle(config.get_text_config())[0]}."
    leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
    others = {name: "cpu" for name, _ in model.named_parameters() if name.rpartition(".")[0] not in leaves}
    return others | {
        name: "disk" if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and middle not in name else "cpu"
        for name, module in leaves.items()
    }


def peak_memory() -> int:
    """Of this process, in bytes. Linux's ru_maxrss would count the process that started this one, too."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def read_tokenizers(request: dict) -> dict:
    """
    Compares the tokenizers, and adds what the models are given: ids of a chat and of English texts. All of this runs in
    a process that may use little time and memory; that of the models loads no tokenizer.
    """
    with failing("source"):
        source = request["source"]
        step(f"{file_of(source, request['gguf'].get('gguf_file', ''), *TOKENIZER)}: loading this tokenizer")
        expected = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **request["gguf"])
    with failing("result"):
        actual, vocab_size = tokenizer_of_target(request)
        result = compare_tokenizers(expected, actual)
        chat = result.pop("chat", None) or probes.PROMPTS[0]
        step(f"{file_of(actual.name_or_path, *TOKENIZER)}: tokenizing text with it")
        return result | {"prompt": probes.tokens(actual, chat, vocab_size), "texts": probes.english(actual, vocab_size)}


def tokenizer_of_target(request: dict):
    """The tokenizer, and the size of the model's vocabulary. The config's own code is run, a tokenizer's is not."""
    step(f"{file_of(request['target'], *TOKENIZER)}: loading this tokenizer")
    config = AutoConfig.from_pretrained(request["target"], trust_remote_code=True)
    return AutoTokenizer.from_pretrained(request["target"], config=config, trust_remote_code=False), config.vocab_size


def decode(request: dict, ids: list[int]) -> str:
    tokenizer, _ = tokenizer_of_target(request)
    step(f"{file_of(request['target'], *TOKENIZER)}: decoding tokens with it")
    return tokenizer.decode(ids)


def file_of(folder: str | Path, *names: str) -> Path:
    """The first of these files that is there, for messages."""
    return next((Path(folder) / name for name in names if (Path(folder) / name).is_file()), Path(folder))


def compare_tokenizers(expected, actual) -> dict:
    """What both make of the prompts and of a chat. What the source's own cannot do is skipped, and noted."""
    result, skipped = {}, []
    step(f"{file_of(expected.name_or_path, *TOKENIZER)}: tokenizing text with it")
    for prompt in probes.PROMPTS:
        try:
            ids = expected(prompt)["input_ids"]
        except MemoryError:
            raise
        except Exception as error:
            skipped.append(f"tokens of {prompt!r}, {fails_itself(error)}")
            continue
        if actual(prompt)["input_ids"] != ids:
            result["tokens_differ"] = prompt
            break
    for name in probes.templates(expected):
        try:
            rendered = render(expected, name)
        except MemoryError:
            raise
        except Exception as error:
            skipped.append(f"chat template{'' if name is None else ' ' + name}, {fails_itself(error)}")
            continue
        if name not in probes.templates(actual) or not renders_as(actual, expected, name, rendered):
            result["chat_differs"] = True
        result.setdefault("chat", rendered)
    if not probes.templates(expected) and probes.templates(actual):
        result["chat_differs"] = True
    return result | {"skipped": skipped}


def renders_as(actual, expected, name: str | None, rendered: str) -> bool:
    """Of a template that renders the time, or something random, the text is compared."""
    if render(actual, name) == rendered:
        return True
    same_text = actual.get_chat_template(name) == expected.get_chat_template(name)
    return same_text and render(expected, name) != rendered


def render(tokenizer, name: str | None) -> str:
    file = file_of(tokenizer.name_or_path, f"additional_chat_templates/{name}.jinja", *TEMPLATE)
    step(f"{file}: rendering a chat with it")
    options = {} if name is None else {"chat_template": name}
    return tokenizer.apply_chat_template(probes.MESSAGES, tokenize=False, add_generation_prompt=True, **options)


def compare_models(request: dict, prompt: list[int], texts: list[list[int]]) -> dict:
    """Loads the source, then the result, and runs both on the same tokens: random ones, `texts`, and after `prompt`."""
    layer_by_layer = request["layer_by_layer"]
    count, longest, new_tokens = probes.LAYERWISE if layer_by_layer else probes.WHOLE
    result = {"dtype": request["dtype"], "skipped": []}

    with failing("source"):
        source = load(request, request["source"], trust_remote_code=False, **request["gguf"])
        config = source.config.get_text_config()
        vocab_size = config.vocab_size
        length = max(min(longest, config.max_position_embeddings - new_tokens), 2)
        batches = probes.passages(texts, vocab_size, count, length)
        if request["mask_token_id"] is not None:
            batches = probes.masked(batches, request["mask_token_id"], vocab_size)
        prompt = prompt[:length] or batches[0][:8]
        afforded = probes.AFFORDED / source.num_parameters()
        inner = {"inner_window": request["inner_window"]} if request["inner_window"] else {}
        lengths = {name: start + probes.BEYOND for name, start in (probes.thresholds(config) | inner).items()}
        reached = {name: end for name, end in lengths.items() if length < end <= afforded}
        result["run_past"] = sorted(name for name, end in lengths.items() if end <= max(length, *reached.values(), 0))
        result["not_run_past"] = sorted(lengths.keys() - result["run_past"])
        long = torch.arange(max(reached.values(), default=0)).mul(7919).remainder(vocab_size).tolist()
        expected, expected_states = logits_of(source, batches, long)
        expected_settings, expected_continuation = settings(source), None
        if source.can_generate():
            eos = source.generation_config.eos_token_id
            try:
                expected_continuation, source_speed = greedy(source, prompt, new_tokens, eos)
            except Exception as error:
                result["skipped"].append(f"generation, {fails_itself(error)}")
        result["source_parameters"] = source.num_parameters()
        del source

    with failing("result"):
        order = {} if request["attention_order"] is None else {"attention_order": request["attention_order"]}
        model = load(request, request["target"], trust_remote_code=True, **order)
        gates = model.gates()
        result["parameters"] = model.num_parameters()
        result["gates"] = len(gates)
        with torch.no_grad():
            for gate in gates.values():
                gate.zero_()
        other = settings(model)
        result["other_settings"] = sorted(name for name, value in expected_settings.items() if other[name] != value)

        actual, states = logits_of(model, batches, long)
        result |= compare(expected, actual)
        result["first_differing_layer"] = first_difference_of_states(expected_states, states)
        if expected_continuation is not None:
            continuation, speed = greedy(model, prompt, new_tokens, eos)
            result["greedy_equal"] = continuation == expected_continuation
            if not result["greedy_equal"]:
                pairs = zip_longest(continuation, expected_continuation)
                result["greedy_first_difference"] = next(n for n, (one, other) in enumerate(pairs) if one != other)
                uncached, _ = greedy(model, prompt, new_tokens, eos, use_cache=False)
                result["greedy_equal_without_cache"] = uncached == expected_continuation
            result["greedy"] = continuation
            result["tokens_per_second"] = {"source": round(source_speed, 2), "nexus": round(speed, 2)}

        def difference() -> float:
            return compare(expected, logits_of(model, batches, long)[0])["max_abs_logit_difference"]

        enough = request["control_tolerance"] * result["max_abs_logit"]
        result["negative_controls"] = controls(model, difference, enough)
    return result


class Failed(Exception):
    """The source or the result cannot be loaded and run."""


@contextmanager
def failing(side: str):
    try:
        yield
    except Exception as error:
        raise Failed(side, sentence(error)) from error


def sentence(error: Exception) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def fails_itself(error: Exception) -> str:
    return f"at which the source itself fails ({sentence(error)})"


def main(request: dict) -> dict:
    torch.manual_seed(0)
    result = bounded(read_tokenizers, request) if request["has_tokenizer"] else {"skipped": []}
    prompt, texts = result.pop("prompt", []), result.pop("texts", [])
    figures = compare_models(request, prompt, texts)
    if figures["not_finite"] and request["dtype"] != "float32":
        figures["in_float32"] = compare_models(request | {"dtype": "float32"}, prompt, texts)
    for compared in (figures, figures.get("in_float32", {})):
        if "greedy" in compared and request["has_tokenizer"]:
            compared["greedy"] = bounded(decode, request, compared["greedy"])
    return {
        "attn_implementation": request["attn_implementation"],
        "layer_by_layer": request["layer_by_layer"],
        **result,
        **figures,
        "skipped": result["skipped"] + figures["skipped"],
        "peak_memory_bytes": peak_memory(),
    }


if __name__ == "__main__":
    try:
        answer = main(json.loads(Path(sys.argv[1]).read_text()))
    except Failed as error:
        answer = {"failed": error.args[0], "reason": error.args[1]}
    except Exceeded as error:
        answer = {"exceeded": str(error)}
    Path(sys.argv[2]).write_text(json.dumps(answer))
