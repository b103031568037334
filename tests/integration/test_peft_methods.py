"""Every method of PEFT with its defaults, as with a Llama; what cannot work says why in one sentence."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nexus_transformers import NexusConfig, NexusForCausalLM

peft = pytest.importorskip("peft")

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": None,
}
TABLES = {
    name: table
    for name, table in vars(peft.utils.constants).items()
    if name.startswith("TRANSFORMERS_MODELS_TO_") and "llama" in table
}
PROMPT = {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
SETTINGS = {  # what a method needs to be given; most of it because the model is so small
    "ADALORA": {"total_step": 10},
    "C3A": {"block_size": 8},
    "CARTRIDGE": {"num_frozen_tokens": 1, **PROMPT},
    "FOURIERFT": {"n_frequency": 10},
    "MISS": {"r": 4},
    "P_TUNING": PROMPT,
    "PREFIX_TUNING": PROMPT,
    "PROMPT_TUNING": PROMPT,
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2]},
    "VBLORA": {"vector_length": 8},
    "WAVEFT": {"n_frequency": 10},
}
# Refused, see below; in need of tasks or of trained adapters. ADAMSS works, and imports scikit-learn for 9 seconds.
NOT_HERE = {"ADAPTION_PROMPT", "SHADOW", "ADAMSS", "CPT", "MULTITASK_PROMPT_TUNING", "POLY", "XLORA"}
METHODS = {kind.value: config for kind, config in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
IDS = torch.arange(1, 25)[None]


def build(order: int = 2) -> NexusForCausalLM:
    torch.manual_seed(0)
    gates = {"inner_gate": True, "inner_gate_init": 0.3}
    return NexusForCausalLM(NexusConfig(**SHAPE, **gates, num_layers=2, attention_order=order)).eval()


def llama() -> LlamaForCausalLM:
    """With the weights of `build(1)`, which is a standard model."""
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=2))
    model.load_state_dict(build(1).state_dict())
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("name", TABLES)
def test_the_default_targets_are_those_of_llama_and_are_there(name):
    modules = {module.split(".")[-1] for module, _ in build().named_modules()}
    assert TABLES[name]["nexus"] == TABLES[name]["llama"]
    assert modules >= set(TABLES[name]["nexus"])


@pytest.mark.parametrize("method", sorted(METHODS.keys() - NOT_HERE))
def test_a_method_with_its_defaults_trains_saves_and_reloads_to_the_same_logits(method, tmp_path):
    model = peft.get_peft_model(build(), METHODS[method](**SETTINGS.get(method, {})))
    before = logits(model.eval())
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(2):  # where one of two factors starts at zero, the first step moves only that
        optimizer.zero_grad()
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    expected = logits(model.eval())
    assert (expected - before).abs().max() > 1e-5
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(build(), tmp_path).eval()), expected)


PROMPTS = {"prefix": peft.PrefixTuningConfig, "prompt": peft.PromptTuningConfig, "p": peft.PromptEncoderConfig}


def prompted(model: torch.nn.Module, method: str) -> "peft.PeftModel":
    torch.manual_seed(1)
    model = peft.get_peft_model(model, PROMPTS[method](**PROMPT)).eval()
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("method", PROMPTS)
def test_a_virtual_prompt_does_what_it_does_to_a_llama(method):
    standard = prompted(build(1), method)
    assert torch.equal(logits(standard), logits(prompted(llama(), method)))
    assert (logits(standard)[:, -IDS.shape[1] :] - logits(build(1))).abs().max() > 0.1


def test_prefix_tuning_cannot_fill_slots_of_more_heads():
    """PEFT makes as many heads for every slot."""
    nested = {"attention_order": 2, "inner_attention": "self"}
    model = prompted(NexusForCausalLM(NexusConfig(**SHAPE, num_layers=2, **nested)), "prefix")
    with pytest.raises(ValueError, match="nor does prefix tuning where inner_attention='self'"):
        logits(model)


@torch.no_grad()
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("method", PROMPTS)
def test_generation_after_a_virtual_prompt(method, order):
    """Token by token without `generate`, for Llama's own is wrong with Transformers 5.24 and PEFT 0.21."""
    model, ids = prompted(build(order), method), IDS[:, :6]
    for _ in range(8):
        ids = torch.cat((ids, model(input_ids=ids).logits[:, -1:].argmax(-1)), dim=1)
    inputs = {"input_ids": ids[:, :6], "attention_mask": torch.ones_like(ids[:, :6])}
    settings = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **settings), ids)
    assert not torch.equal(build(order).generate(**inputs, **settings), ids)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (peft.LoraConfig(layer_replication=[(0, 2), (1, 2)]), "layer_replication"),
        (peft.ShadowConfig(task_type="CAUSAL_LM"), "num_layers"),
        (peft.AdaptionPromptConfig(task_type="CAUSAL_LM"), "Unsupported model type"),
    ],
    ids=["layer replication", "shadow", "adaption prompt"],
)
def test_what_cannot_work_is_refused_with_its_reason(config, reason):
    with pytest.raises(ValueError, match=reason):
        peft.get_peft_model(build(), config)


def test_an_adapter_without_inner_norm_freezes_the_gates_and_does_not_carry_them(tmp_path):
    from safetensors.torch import load_file

    model = peft.get_peft_model(build(), peft.LoraConfig(task_type="CAUSAL_LM"))
    assert model.get_base_model().gates()
    assert not any(gate.requires_grad for gate in model.get_base_model().gates().values())
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "adapter_model.safetensors") if "_gate_" in name]
