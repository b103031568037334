"""LoRA adapters and gates, together and apart: trained, saved, loaded, merged."""

import importlib
import sys

import pytest
import torch
from arms import ARMS, build, each_arm
from safetensors.torch import load_file

import nexus_transformers
from isolated import run_isolated
from nexus_transformers import NexusForCausalLM

peft = pytest.importorskip("peft")

IDS = torch.arange(1, 25)[None]


def train(model: torch.nn.Module, steps: int = 4) -> dict[str, torch.Tensor]:
    """Trains what is trainable; returns the gradients of the first step."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.02, weight_decay=0)
    gradients = {}
    for _ in range(steps):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        gradients = gradients or {name: parameter.grad.clone() for name, parameter in parameters.items()}
        optimizer.step()
    return gradients


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS).logits


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def adapted(arm: dict, folder) -> tuple[NexusForCausalLM, "peft.PeftModel"]:
    """A saved base model, and the same with an untrained adapter on top; all gates are part of the adapter."""
    build(**arm).save_pretrained(folder)
    base = NexusForCausalLM.from_pretrained(folder)
    # PEFT looks for the class of remote code in an installed package, and refuses, unless it is told the task
    config = peft.LoraConfig(modules_to_save=["inner_norm"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(NexusForCausalLM.from_pretrained(folder), config)
    return base.eval(), model.eval()


@each_arm
def test_lora_needs_no_target_modules(arm):
    """It adapts the query and value projections, as in a Llama, those of separate inner layers included."""
    model = peft.get_peft_model(build(**arm), peft.LoraConfig())
    attentions = [""] + [f"inner_{branch}." for branch in ("query", "key", "value")]
    projections = [
        f"model.layers.{layer}.self_attn.{at}{kind}_proj" for layer in (0, 1) for at in attentions for kind in "qv"
    ]
    there = {name for name, _ in build(**arm).named_modules()}
    assert sorted(model.base_model.targeted_module_names) == sorted(there.intersection(projections))


def test_without_our_entry_lora_asks_for_target_modules(monkeypatch):
    monkeypatch.delitem(peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, "nexus")
    with pytest.raises(ValueError, match="target_modules"):
        peft.get_peft_model(build(), peft.LoraConfig())


def test_the_package_imports_without_peft(monkeypatch):
    targets = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    monkeypatch.delitem(targets, "nexus")
    monkeypatch.setitem(sys.modules, "peft.utils", None)
    importlib.reload(nexus_transformers)
    assert "nexus" not in targets


@each_arm
def test_adapter_and_gates_train_together_and_nothing_else_does(arm, tmp_path):
    base, model = adapted(arm, tmp_path)
    assert torch.equal(logits(model), logits(base)), "an untrained adapter changes nothing"
    before = snapshot(model)
    gradients = train(model)
    gates = [name for name in gradients if "_gate_" in name]
    assert len(gates) == len(base.gates()) >= 4
    assert {name for name in gradients if "lora_" not in name} == set(gates)
    assert all(gradients[name].abs() > 1e-6 for name in gates)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != (name in gradients), f"{name}: moves if and only if trainable"


@each_arm
def test_a_saved_adapter_carries_the_gates_and_reloads_to_the_same_logits(arm, tmp_path):
    base, model = adapted(arm, tmp_path / "base")
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, gate in base.gates().items():
        assert (saved[f"base_model.model.{name}"] - gate).abs() > 1e-3, name
    targets = model.base_model.targeted_module_names
    assert len(saved) == len(base.gates()) + 2 * len(targets), "the gates, and A and B of each projection"

    reloaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(logits(reloaded), logits(model))
    with reloaded.disable_adapter():
        untrained = logits(reloaded)
    assert torch.equal(untrained, logits(NexusForCausalLM.from_pretrained(tmp_path / "base")))
    assert (untrained - logits(model)).abs().max() > 0.1


def test_an_adapter_loads_on_a_remote_code_model(tmp_path):
    expected = {}
    for name, arm in ARMS.items():
        _, model = adapted(arm, tmp_path / name / "base")
        train(model)
        model.save_pretrained(tmp_path / name)
        expected[name] = logits(model)[0].tolist()
    script = """
import json, torch
from peft import AutoPeftModelForCausalLM
logits, ids = {}, torch.arange(1, 25)[None]
for name in sys.argv[1:]:
    model = AutoPeftModelForCausalLM.from_pretrained(name, trust_remote_code=True).eval()
    assert type(model.get_base_model()).__module__.startswith("transformers_modules.")
    logits[name] = model(ids).logits[0].tolist()
print(json.dumps(logits))
"""
    assert run_isolated(script, tmp_path, *ARMS) == expected


@each_arm
def test_a_merged_adapter_is_a_plain_nexus_model(arm, tmp_path):
    base, model = adapted(arm, tmp_path / "base")
    train(model)
    expected = logits(model)
    gates = {name: tensor for name, tensor in model.named_parameters() if "_gate_" in name and tensor.requires_grad}
    merged = model.merge_and_unload()
    # W x + B A x against (W + B A) x: equal but for rounding, in float32 with logits up to 3
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=0)
    assert (logits(base) - expected).abs().max() > 0.1

    assert type(merged) is NexusForCausalLM
    merged.save_pretrained(tmp_path / "merged")
    reloaded, report = NexusForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(reloaded.eval()), logits(merged))
    assert [gate.item() for gate in reloaded.gates().values()] == [gate.item() for gate in gates.values()]


@each_arm
def test_gates_trained_alone_survive_saving(arm, tmp_path):
    model = build(**arm)
    before = snapshot(model)
    model.freeze_all_but_gates()
    gates = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert gates == list(model.gates()) == [name for name in before if "_gate_" in name]
    train(model)
    model.save_pretrained(tmp_path)
    reloaded = NexusForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(reloaded), logits(model))
    for name, tensor in reloaded.state_dict().items():
        assert torch.equal(tensor, before[name]) != (name in gates), f"{name}: gates move, everything else is frozen"
