"""What someone gets who types `pip install .` and converts a model: `make test-stranger`.

    stranger.py write FOLDER   a tiny Llama, and what `nexus convert` makes of it
    stranger.py check FOLDER   the converted folder beside the Llama, in a process without our package

`check` also runs with other releases of Transformers, on the folder that the first one wrote.
"""

import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # a tiny model: threads would only wait for each other
os.environ["HF_MODULES_CACHE"] = f"{sys.argv[2]}/modules"  # read at import

import torch
import transformers
from transformers import AutoModelForCausalLM

FOLDER = Path(sys.argv[2])
SOURCE, CONVERTED, TOKENS = FOLDER / "llama", FOLDER / "nexus", FOLDER / "tokens.pt"
INPUTS = {"input_ids": torch.arange(3, 43).reshape(2, 20), "attention_mask": torch.ones(2, 20, dtype=torch.long)}
NO_WINDOW, WINDOW = {}, {"sliding_window": 6, "sliding_layers": [1]}
CACHES = {  # name -> changes of the config, arguments of `generate`
    "dynamic": (NO_WINDOW, {}),
    "static": (NO_WINDOW, {"cache_implementation": "static"}),
    "dynamic, sliding": (WINDOW, {}),
    "static, sliding": (WINDOW, {"cache_implementation": "static"}),
}


def write() -> None:
    import checkpoints

    checkpoints.llama(SOURCE)
    subprocess.run([Path(sys.executable).with_name("nexus"), "convert", SOURCE, CONVERTED, "--order", "2"], check=True)


def load(**changes) -> transformers.PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(CONVERTED, trust_remote_code=True, **changes).eval()


def generate(model, **settings) -> torch.Tensor:
    return model.generate(**INPUTS, min_new_tokens=24, max_new_tokens=24, do_sample=False, **settings)


@torch.no_grad()
def check() -> None:
    sys.modules["nexus_transformers"] = None
    source, converted = AutoModelForCausalLM.from_pretrained(SOURCE).eval(), load()
    assert torch.equal(converted(**INPUTS).logits, source(**INPUTS).logits), (
        "with closed gates, the logits are not the source's"
    )
    tokens = {}
    for name, (changes, settings) in CACHES.items():
        model = load(**changes)
        closed = generate(model, use_cache=False)
        for gate in model.gates().values():
            gate.fill_(0.7)
        expected = generate(model, use_cache=False)
        assert not torch.equal(expected, closed), f"{name}: open gates change nothing"
        assert torch.equal(generate(model, **settings), expected), f"the cache changes the tokens: {name}"
        tokens[name] = expected
    if TOKENS.exists():
        for name, others in torch.load(TOKENS).items():
            assert torch.equal(tokens[name], others), f"{name}: other tokens than in the environment before"
    torch.save(tokens, TOKENS)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: {len(CACHES)} caches right")


{"write": write, "check": check}[sys.argv[1]]()
