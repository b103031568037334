"""
torchao and bitsandbytes on a CPU, with remote code. The distance to the float model is the mean KL divergence, in nats.

They lie apart from the other packages, in .venv/quantizers: where Transformers and PEFT find them they import them,
which costs every process two seconds and prints warnings.
"""

import sys
from pathlib import Path

import pytest

import checkpoints
from isolated import run_isolated
from nexus_transformers.conversion_scripts.convert import convert

QUANTIZERS = Path(sys.prefix) / "quantizers"  # `make install` puts them there
# What random weights with sharp attention cost; each bound is about twice what was measured. Without nesting: 1.6.
BOUNDS = {"torchao int8": 0.004, "bitsandbytes int8": 0.01, "bitsandbytes nf4": 0.7}

SCRIPT = """
import json, os, torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

CONFIGS = {
    "torchao int8": TorchAoConfig(Int8WeightOnlyConfig()),
    "bitsandbytes int8": BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
}
ids = torch.randint(3, 512, (2, 48), generator=torch.Generator().manual_seed(0))

def load(folder, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **settings).eval()

@torch.no_grad()
def log_probabilities(model):
    return model(ids).logits.float().log_softmax(-1)

def distance(other):
    return (expected.exp() * (expected - other)).sum(-1).mean().item()

model = load(sys.argv[1])
expected, weights = log_probabilities(model), dict(model.named_parameters())
linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
report = {"standard": distance(log_probabilities(load(sys.argv[1], attention_order=1)))}
for name, config in CONFIGS.items():
    quantized = load(sys.argv[1], quantization_config=config)
    found = log_probabilities(quantized)
    folder = name.replace(" ", "_")
    quantized.save_pretrained(folder)
    again = load(folder)
    kept = {
        key for key, weight in again.named_parameters()
        if type(weight) is torch.nn.Parameter and weight.dtype == torch.float32 and torch.equal(weight, weights[key])
    }
    report[name] = {
        "distance": distance(found),
        "same after a reload": torch.equal(log_probabilities(again), found),
        "tokens": again.generate(ids[:1, :8], max_new_tokens=8, do_sample=False).shape[1] - 8,
        "quantized": sorted(set(weights) - kept),
        "size": os.path.getsize(f"{folder}/model.safetensors") / os.path.getsize(f"{sys.argv[1]}/model.safetensors"),
        "module": type(again).__module__,
    }
report |= {"linear": sorted(linear - {"lm_head.weight"}), "gates": list(model.gates())}
print(json.dumps(report))
"""


@pytest.mark.skipif(not QUANTIZERS.exists(), reason="torchao and bitsandbytes are not in .venv/quantizers")
def test_a_quantized_model_is_close_saves_and_loads_and_its_gates_and_norms_stay_float(tmp_path):
    source = checkpoints.llama(tmp_path / "source", hidden_size=64)  # nf4 has blocks of 64
    convert(source, tmp_path / "model", gate_init=0.4, verify=False)
    report = run_isolated(SCRIPT, tmp_path, tmp_path / "model", packages=QUANTIZERS)
    assert len(report["gates"]) == 6
    for name, bound in BOUNDS.items():
        found = report[name]
        assert 0 < found["distance"] < bound < report["standard"] / 2, f"{name}: {found['distance']}"
        assert found["quantized"] == report["linear"], "every projection, and neither a gate nor a norm nor the head"
        assert found["same after a reload"]
        assert found["tokens"] == 8
        assert found["size"] < 0.7
        assert found["module"].startswith("transformers_modules.")
