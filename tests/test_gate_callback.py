"""GateCallback, read back from the file that TensorBoard reads."""

import struct

import pytest
import torch
from arms import build
from transformers import Trainer, TrainingArguments

from nexus_transformers import GateCallback

IDS = torch.arange(1, 13).tolist()


def train(model, folder, callbacks=1, trainer_class=Trainer, **settings) -> Trainer:
    settings = {"report_to": "none", "max_steps": 4, "logging_steps": 2, "learning_rate": 0.05} | settings
    arguments = TrainingArguments(str(folder), save_strategy="no", use_cpu=True, disable_tqdm=True, **settings)
    trainer = trainer_class(model, arguments, train_dataset=[{"input_ids": IDS, "labels": IDS}] * 8)
    for _ in range(callbacks):
        trainer.add_callback(GateCallback(trainer))
    trainer.train()
    return trainer


def logged(trainer: Trainer, name: str) -> dict[int, float]:
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


def scalars(folder) -> dict[tuple[str, int], float]:
    """(name, step) -> value, of the event file: records of a length, a checksum, a protobuf and a checksum."""
    event_pb2 = pytest.importorskip("tensorboardX").proto.event_pb2
    (file,) = folder.rglob("events.out.tfevents.*")
    data, found = file.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    return found


def test_tensorboard_shows_every_gate_their_mean_and_the_largest(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    model = build(attention_order=[2, 3])
    before = {name: gate.item() for name, gate in model.gates().items()}
    train(model, tmp_path, report_to="tensorboard")
    found = scalars(tmp_path / "board")
    assert {step for name, step in found if name == "train/gates/mean"} == {2, 4}
    assert {name for name, _ in found if "/layer_" in name} == {
        f"train/gates/layer_{layer}/{branch}_{level}"
        for layer, level in ((0, 1), (1, 1), (1, 2))
        for branch in ("query", "key")
    }
    gates = {name: gate.item() for name, gate in model.gates().items()}
    sizes = [abs(gate) for gate in gates.values()]
    assert found["train/gates/mean", 4] == pytest.approx(sum(sizes) / 6)
    assert found["train/gates/largest", 4] == pytest.approx(max(sizes))
    name = "model.layers.1.self_attn.inner_norm.key_gate_2"
    assert found["train/gates/layer_1/key_2", 4] == pytest.approx(gates[name])
    assert found["train/gates/layer_1/key_2", 2] != pytest.approx(before[name], abs=1e-3), "as trained so far"
    assert found["train/loss", 2] > 0, "what Trainer logs itself is there too"


def test_without_a_report_the_two_figures_are_in_the_history_and_training_is_the_same(tmp_path):
    with_callback, without = build(), build()
    trainer = train(with_callback, tmp_path)
    plain = train(without, tmp_path, callbacks=0)
    assert list(logged(trainer, "gates/mean")) == list(logged(trainer, "loss")) == [2, 4]
    assert not [name for entry in trainer.state.log_history for name in entry if "layer_" in name]
    assert logged(trainer, "loss") == logged(plain, "loss") and not logged(plain, "gates/mean")
    for one, other in zip(with_callback.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gates_under_an_adapter_are_those_that_train(tmp_path):
    peft = pytest.importorskip("peft")
    model = build()
    settings = peft.LoraConfig(modules_to_save=["inner_norm"], target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, settings)
    before = max(abs(gate.item()) for gate in model.gates().values())
    trainer = train(adapted, tmp_path)
    after = max(abs(gate.item()) for gate in model.gates().values())
    assert logged(trainer, "gates/largest")[4] == pytest.approx(after) != pytest.approx(before, abs=1e-3)


def test_of_several_adapters_the_active_one_is_logged(tmp_path):
    """TRL's DPOTrainer adds a frozen copy of the adapter, as its reference."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(modules_to_save=["inner_norm"], target_modules="all-linear", task_type="CAUSAL_LM")
    model = build()
    adapted = peft.get_peft_model(model, settings)
    adapted.add_adapter("frozen", settings)
    before = {name: gate.item() for name, gate in model.gates().items()}
    assert all(".modules_to_save.default." in name for name in before) and len(before) == 2
    trainer = train(adapted, tmp_path)
    after = [abs(gate.item()) for gate in model.gates().values()]
    assert logged(trainer, "gates/mean")[4] == pytest.approx(sum(after) / len(after))
    adapted.set_adapter("frozen")
    assert list(before.values()) == [gate.item() for gate in model.gates().values()]
    with adapted.disable_adapter():
        assert all(".original_module." in name for name in model.gates())
    assert max(after) != pytest.approx(max(map(abs, before.values())), abs=1e-3)


def test_a_trainer_with_a_log_of_its_own_logs_once(tmp_path):
    """TRL's trainers print tables, and add what they have gathered, whenever `log` is called."""

    class Gathering(Trainer):
        calls = 0

        def log(self, logs, *args, **kwargs):
            self.calls += "loss" in logs or "gates/mean" in logs
            super().log(logs | {"gathered": 1.0}, *args, **kwargs)

    trainer = train(build(), tmp_path, trainer_class=Gathering)
    assert trainer.calls == len(logged(trainer, "loss")) == len(logged(trainer, "gates/mean")) == 2
    assert not any("gathered" in entry for entry in trainer.state.log_history if "gates/mean" in entry)


def test_a_model_without_gates_logs_nothing(tmp_path):
    trainer = train(build(inner_gate=False), tmp_path)
    assert logged(trainer, "loss") and not logged(trainer, "gates/mean")
