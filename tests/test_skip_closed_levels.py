"""Closed gates cost nothing once `skip_closed_levels` has been told so, and are never skipped by mistake."""

import pytest
import torch
from arms import build, each_arm
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from nexus_transformers import NexusForCausalLM, NexusModel

IDS = torch.randint(1, 64, (2, 20), generator=torch.Generator().manual_seed(1))


def half_closed(**changes) -> NexusForCausalLM:
    """Every gate of the first layer is closed, those of the second are open."""
    model = build(**changes)
    with torch.no_grad():
        for name, gate in model.gates().items():
            if ".layers.0." in name:
                gate.zero_()
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


def flops(model) -> int:
    model.set_attn_implementation("eager")  # PyTorch does not count fused attention
    with FlopCounterMode(display=False) as counter:
        logits(model)
    model.set_attn_implementation("sdpa")
    return counter.get_total_flops()


def generate(model, **settings) -> torch.Tensor:
    return model.generate(IDS, max_new_tokens=8, do_sample=False, **settings)


@each_arm
@pytest.mark.parametrize("window", [None, 4])
def test_skipping_changes_no_bit_and_saves_the_inner_levels(arm, window):
    model = half_closed(**arm, inner_window=window)
    expected, tokens, cost = logits(model), generate(model), flops(model)
    assert model.skip_closed_levels() == [0]
    assert torch.equal(logits(model), expected)
    for cache in ("dynamic", "static"):
        assert torch.equal(generate(model, cache_implementation=cache), tokens)
    order = model.config.attention_order[1]
    assert flops(model) == flops(build(**arm | {"attention_order": [1, order]}, inner_window=window)) < cost
    model.restore_levels()
    assert torch.equal(logits(model), expected) and flops(model) == cost


def test_a_closed_model_is_a_standard_model():
    model = build(attention_order=2)
    with torch.no_grad():
        for gate in model.gates().values():
            gate.zero_()
    assert model.skip_closed_levels() == [0, 1]
    assert model.config.num_hidden_layers == 2
    standard = build(attention_order=1)
    standard.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(logits(model), logits(standard)) and torch.equal(generate(model), generate(standard))


@pytest.mark.parametrize("value", [1e-30, -1e-3, float("nan")])
def test_a_gate_that_is_not_exactly_0_is_not_skipped(value):
    model = half_closed(attention_order=2)
    with torch.no_grad():
        model.gates()["model.layers.0.self_attn.inner_norm.key_gate_1"].fill_(value)
    assert model.skip_closed_levels() == []
    assert model.config.attention_order == 2 and len(model.gates()) == 4


def test_models_without_gates_have_nothing_to_skip():
    for changes in ({"inner_gate": False}, {"attention_order": 1}):
        assert build(**changes).skip_closed_levels() == []


def test_loading_other_gates_restores_the_levels():
    model, other = half_closed(attention_order=2), build(attention_order=2)
    model.skip_closed_levels()
    model.load_state_dict(other.state_dict())
    assert model.config.attention_order == 2
    assert torch.equal(logits(model), logits(other))


@pytest.mark.parametrize("value", [1e-30, float("nan")])
def test_a_gate_opened_while_it_is_skipped_is_an_error(value):
    model = half_closed(attention_order=2)
    expected = logits(model)
    model.skip_closed_levels()
    gate = model.gates()["model.layers.0.self_attn.inner_norm.key_gate_1"]
    gate.data.fill_(value)  # of all ways the one that leaves no trace
    with pytest.raises(ValueError, match="call `restore_levels"):
        logits(model)
    gate.data.zero_()
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("train", [lambda model: model.train(), lambda model: model.model.train()])
def test_training_trains_every_gate(train):
    """Also with an optimizer that was made while levels were skipped, as Trainer makes it."""
    model = half_closed(attention_order=2)
    model.skip_closed_levels()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model)
    assert model.config.attention_order == 2
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    closed = [gate for name, gate in model.gates().items() if ".layers.0." in name]
    assert len(closed) == 2 and all(gate != 0 for gate in closed)


def test_peft_made_while_levels_are_skipped_has_the_gates(tmp_path):
    peft = pytest.importorskip("peft")
    model = half_closed(attention_order=2)
    expected = logits(model)
    model.skip_closed_levels()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["inner_norm"]))
    adapted.train()(IDS, labels=IDS).loss.backward()
    assert all(gate.grad.abs() > 0 for gate in adapted.gates().values())
    assert adapted.eval().skip_closed_levels() == [0]
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(build(attention_order=2), tmp_path).eval()
    assert torch.equal(logits(loaded), expected) and torch.equal(logits(adapted), expected)


def test_open_gates_beneath_an_adapter_are_not_skipped():
    peft = pytest.importorskip("peft")
    model = build(attention_order=2)
    expected = logits(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["inner_norm"]))
    adapted.eval()
    with torch.no_grad():
        for gate in model.gates().values():
            gate.zero_()  # the adapter's, not the model's own
    assert model.skip_closed_levels() == []
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), expected)


def test_gates_that_peft_copies_while_they_are_skipped_are_watched():
    peft = pytest.importorskip("peft")
    model = half_closed(attention_order=2)
    model.skip_closed_levels()
    settings = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["inner_norm"])
    adapted = peft.get_peft_model(model, settings).eval()
    logits(adapted)
    with torch.no_grad():
        next(iter(model.gates().values())).fill_(1)
    with pytest.raises(ValueError, match="call `restore_levels"):
        logits(adapted)


def test_a_gate_that_is_replaced_is_watched():
    model = half_closed(attention_order=2)
    model.skip_closed_levels()
    logits(model)
    model.model.layers[0].self_attn.inner_norm.key_gate_1 = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="call `restore_levels"):
        logits(model)


def test_skipping_twice_sees_the_gates_as_they_are_now():
    model = half_closed(attention_order=2)
    assert model.skip_closed_levels() == model.skip_closed_levels() == [0]
    model.restore_levels()
    with torch.no_grad():
        for gate in model.gates().values():
            gate.copy_(1 - gate.sign())  # the other way round
    assert model.skip_closed_levels() == [1]


def test_a_model_is_saved_whole_and_goes_on_skipping(tmp_path):
    model = half_closed(attention_order=2)
    model.skip_closed_levels()
    model.save_pretrained(tmp_path)
    assert model.config.attention_order == [1, 2]
    loaded = NexusForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.attention_order == 2 and len(loaded.gates()) == 4
    assert torch.equal(logits(loaded), logits(model))


def test_weights_that_somebody_gathered_are_whole_too(tmp_path):
    model = half_closed(attention_order=2, inner_gate_init=0.5)
    model.skip_closed_levels()
    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    assert torch.equal(logits(NexusForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_a_model_that_could_not_be_saved_goes_on_skipping(tmp_path):
    model = half_closed(attention_order=2)
    model.skip_closed_levels()
    with pytest.raises(TypeError):
        model.save_pretrained(tmp_path, max_shard_size=[])
    assert model.config.attention_order == [1, 2]


@pytest.mark.parametrize("change", [lambda model: model.half(), lambda model: model.requires_grad_(False)])
def test_the_gates_change_with_the_model(change):
    changed, plain = half_closed(attention_order=2), change(half_closed(attention_order=2))
    changed.skip_closed_levels()
    change(changed).restore_levels()
    for (name, gate), (_, expected) in zip(changed.gates().items(), plain.gates().items(), strict=True):
        assert (gate.dtype, gate.requires_grad) == (expected.dtype, expected.requires_grad), name


def test_offloaded_gates_count_as_open():
    model = half_closed(attention_order=2)
    model.model.layers[0].to("meta")
    assert model.skip_closed_levels() == []


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("turn", ["skip_closed_levels", "restore_levels"])
def test_a_cache_made_before_is_refused(turn, begun):
    model = half_closed(attention_order=2)
    if turn == "restore_levels":
        model.skip_closed_levels()
    cache = model(IDS).past_key_values if begun else DynamicCache(config=model.config)
    getattr(model, turn)()
    with pytest.raises(ValueError, match=r"has [34] slots, and the model [34].*Make a new one"):
        model(IDS[:, :1], past_key_values=cache)


def test_a_model_with_fewer_layers_takes_every_cache_and_skips_nothing():
    model = build(attention_order=2, num_layers=3)
    model.model.layers = model.model.layers[:2]
    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        outputs = [model(ids, past_key_values=cache).logits for ids in IDS.split(10, dim=1)]
        torch.testing.assert_close(torch.cat(outputs, dim=1), logits(model), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="Layers were removed"):
        model.skip_closed_levels()


def test_the_decoder_alone_can_skip():
    decoder = half_closed(attention_order=2).model
    assert isinstance(decoder, NexusModel)
    assert decoder.skip_closed_levels() == [0]


def test_other_models_of_the_same_config_are_not_touched():
    model = half_closed()
    config = model.config
    other = NexusForCausalLM(config).eval()
    expected = logits(other)
    assert model.skip_closed_levels() == [0]
    assert torch.equal(logits(other), expected) and generate(other).shape == generate(model).shape
    assert other.config is config and config.layer_orders != model.config.layer_orders
    model.train()
    assert model.config.layer_orders == config.layer_orders


def test_a_model_in_training_mode_skips_nothing():
    """Its gates would not be trained, and nothing would say so."""
    with pytest.raises(ValueError, match=r"call eval\(\) first"):
        half_closed().train().skip_closed_levels()
