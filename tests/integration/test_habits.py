"""What people do with any model from habit, beside a Llama of the same weights: options of Trainer, tables of names."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from isolated import run_isolated
from nexus_transformers import NexusConfig, NexusForCausalLM
from nexus_transformers.conversion_scripts.convert import convert

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": None,
}
IDS = torch.randint(1, 64, (1, 12), generator=torch.Generator().manual_seed(0))


def build(gate: float = 0.0) -> NexusForCausalLM:
    torch.manual_seed(0)
    gates = {"inner_gate": True, "inner_gate_init": gate}
    return NexusForCausalLM(NexusConfig(**SHAPE, **gates, num_layers=3, attention_order=[3, 1, 2])).eval()


def llama() -> LlamaForCausalLM:
    """With the weights of `build()`, whose closed gates make it a standard model."""
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=3))
    model.load_state_dict({name: tensor for name, tensor in build().state_dict().items() if "_gate_" not in name})
    return model.eval()


def trainer(model: torch.nn.Module, folder, **settings) -> Trainer:
    settings |= {"max_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    rows = [{"input_ids": IDS[0], "labels": IDS[0]}] * 8
    return Trainer(model, TrainingArguments(str(folder), **settings), train_dataset=rows)


def loss(model: torch.nn.Module, folder, **settings) -> float:
    return trainer(model, folder, **settings).train().training_loss


# Label smoothing


def test_label_smoothing_trains_for_the_next_token_as_with_a_llama(tmp_path, monkeypatch):
    plain = loss(build(), tmp_path)
    smoothed = loss(build(), tmp_path, label_smoothing_factor=0.1)
    assert smoothed == pytest.approx(loss(llama(), tmp_path, label_smoothing_factor=0.1), abs=1e-5)
    assert loss(build(), tmp_path, label_smoothing_factor=1e-9) == pytest.approx(plain, abs=1e-5)
    assert abs(smoothed - plain) > 0.01
    monkeypatch.delitem(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "nexus")
    assert abs(loss(build(), tmp_path, label_smoothing_factor=1e-9) - plain) > 0.01, "Trainer goes by this table"


def test_label_smoothing_under_an_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build(), peft.LoraConfig(task_type="CAUSAL_LM"))
    assert loss(model, tmp_path, label_smoothing_factor=1e-9) == pytest.approx(loss(build(), tmp_path), abs=1e-5)


def test_label_smoothing_with_remote_code(llama_folder, tmp_path):
    convert(llama_folder, tmp_path / "model", verify=False)
    script = """
import json, torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

row = {"input_ids": torch.arange(3, 40), "labels": torch.arange(3, 40)}
def loss(folder, smoothing):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    settings = dict(report_to="none", save_strategy="no", use_cpu=True, label_smoothing_factor=smoothing)
    arguments = TrainingArguments("out", max_steps=1, **settings)
    return Trainer(model, arguments, train_dataset=[row] * 8).train().training_loss

llama, nexus = sys.argv[1:]
losses = [loss(llama, 0.1), loss(nexus, 0.1), loss(nexus, 0), loss(nexus, 1e-9)]
del MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["nexus"]
print(json.dumps([*losses, loss(nexus, 1e-9)]))
"""
    with_llama, smoothed, plain, hardly_smoothed, unknown = run_isolated(
        script, tmp_path, llama_folder, tmp_path / "model"
    )
    assert smoothed == pytest.approx(with_llama, abs=1e-5)
    assert hardly_smoothed == pytest.approx(plain, abs=1e-5)
    assert abs(unknown - plain) > 0.01 and abs(smoothed - plain) > 0.01


# The table that Trainer goes by


def test_the_table_still_serves_other_models(monkeypatch):
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, num_hidden_layers=1))
    assert type(model) is LlamaForCausalLM
    assert type(AutoModelForCausalLM.from_config(NexusConfig(**SHAPE, num_layers=1))) is NexusForCausalLM
    monkeypatch.setattr(MODEL_FOR_CAUSAL_LM_MAPPING, "_config_mapping", {"llama": "LlamaConfig"})  # all: 11 seconds
    everything = {LlamaConfig: LlamaForCausalLM, NexusConfig: NexusForCausalLM}
    assert dict(MODEL_FOR_CAUSAL_LM_MAPPING.items()) == everything
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING) == set(everything)
    assert len(MODEL_FOR_CAUSAL_LM_MAPPING) == 2


# Other options of Trainer


def test_trainer_writes_a_model_card(tmp_path):
    run = trainer(build(), tmp_path)
    run.train()
    run.create_model_card()
    assert "generated_from_trainer" in (tmp_path / "README.md").read_text()
    assert run.state.total_flos > 0


def test_neftune_makes_noise_while_training_only(tmp_path):
    model = build(gate=0.5)
    plain = loss(build(gate=0.5), tmp_path)
    assert loss(model, tmp_path, neftune_noise_alpha=50.0, learning_rate=0.0) != pytest.approx(plain, abs=1e-4)
    assert torch.equal(model.eval()(IDS).logits, build(gate=0.5)(IDS).logits), "no hook is left"


# What generation returns


def test_generation_returns_a_map_per_attention_call_and_a_state_per_layer():
    model = build(gate=0.5)
    model.set_attn_implementation("eager")
    settings = {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True}
    output = model.generate(IDS, max_new_tokens=3, do_sample=False, **settings)
    calls, layers = sum(model.config.layer_orders), model.config.num_layers
    assert (calls, layers) == (6, 3)
    assert [len(maps) for maps in output.attentions] == [calls] * 3, "of the prompt, and of each token"
    assert [len(states) for states in output.hidden_states] == [layers + 1] * 3
    whole = model(output.sequences[:, :-1], output_attentions=True, output_hidden_states=True)
    for last, all_of_it in zip(output.attentions[-1], whole.attentions, strict=True):
        torch.testing.assert_close(last, all_of_it[:, :, -1:], atol=1e-5, rtol=0)
    for last, all_of_it in zip(output.hidden_states[-1], whole.hidden_states, strict=True):
        torch.testing.assert_close(last, all_of_it[:, -1:], atol=1e-4, rtol=0)
