"""Trainer: the loss means what it should, a checkpoint resumes bit for bit, and memory savers change no gradient."""

import json
from pathlib import Path

import arms
import pytest
import torch
from arms import each_arm
from torch.nn.functional import cross_entropy
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments, set_seed

from nexus_transformers import (
    NexusConfig,
    NexusForCausalLM,
    NexusForQuestionAnswering,
    NexusForSequenceClassification,
    NexusForTokenClassification,
)

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
    "attention_order": [3, 2],
    "inner_gate": True,
    "inner_gate_init": 0.3,
    "pad_token_id": 0,
}


def build(**changes) -> NexusForCausalLM:
    torch.manual_seed(0)
    return NexusForCausalLM(NexusConfig(**SHAPE | changes))


def examples(count=16, length=12) -> list[dict]:
    """Rows of one length whose labelled parts differ in length, so that tokens and rows weigh differently."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        ids = torch.randint(1, 64, (length,), generator=generator)
        labels = ids.clone()
        labels[: number % 9] = -100
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def trainer(model, folder, rows=None, **settings) -> Trainer:
    defaults = {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1}
    defaults |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 7}
    arguments = TrainingArguments(output_dir=str(folder), **defaults | settings)
    return Trainer(model=model, args=arguments, train_dataset=rows or examples())


def losses(trained: Trainer) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


def assert_same_weights(one, other, tolerance=0.0):
    theirs = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(
            parameter, theirs[name], atol=tolerance, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_one_batch_of_8_equals_4_accumulated_batches_of_2_per_token(tmp_path):
    """With plain gradient descent, weights after a step show the gradient. Tolerance 1e-6, at steps of about 1e-2."""
    settings = {
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0,
        "lr_scheduler_type": "constant",
    }
    rows = examples(8)
    at_once = trainer(build(), tmp_path, rows, per_device_train_batch_size=8, **settings)
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    in_parts = trainer(build(), tmp_path, rows, **split, **settings)
    at_once.train()
    in_parts.train()
    assert losses(in_parts) == pytest.approx(losses(at_once), abs=2e-4)  # logged with four digits
    assert_same_weights(in_parts.model, at_once.model, 1e-6)

    ids, labels = (torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels"))
    logits = build()(ids).logits[:, :-1]
    per_token = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    per_row = torch.stack([cross_entropy(row, label[1:]) for row, label in zip(logits, labels, strict=True)]).mean()
    assert losses(at_once)[0] == pytest.approx(per_token.item(), abs=2e-4)
    assert abs(per_row - per_token) > 1e-3, "rows and tokens weigh differently here"
    with pytest.raises(AssertionError):
        assert_same_weights(in_parts.model, build(), 1e-6)


@pytest.mark.parametrize("head", [NexusForSequenceClassification, NexusForTokenClassification])
def test_a_classifier_accumulates_the_mean_of_its_losses(head, tmp_path):
    """Llama's and BERT's heads get four times the loss and the gradient here, with Transformers 5.24."""
    settings = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0}
    rows = examples(8)
    for number, row in enumerate(rows):
        of_tokens = head is NexusForTokenClassification
        row["labels"] = [token % 2 for token in row["input_ids"]] if of_tokens else number % 2
    config = build(classifier_dropout=0.0).config
    models = [head(config) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    at_once = trainer(models[0], tmp_path, rows, per_device_train_batch_size=8, **settings)
    in_parts = trainer(
        models[1], tmp_path, rows, per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings
    )
    at_once.train()
    in_parts.train()
    assert losses(in_parts) == pytest.approx(losses(at_once), abs=2e-4)
    assert_same_weights(in_parts.model, at_once.model, 1e-6)
    with pytest.raises(AssertionError):
        assert_same_weights(in_parts.model, head(config), 1e-6)


def test_a_resumed_run_continues_bit_for_bit_and_its_checkpoint_carries_the_code(tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = trainer(build(attention_dropout=0.1), tmp_path / "whole", **settings)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert {"configuration_nexus.py", "modeling_nexus.py"} <= {file.name for file in checkpoint.iterdir()}
    set_seed(1)
    resumed = trainer(build(attention_dropout=0.1), tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_weights(resumed.model, whole.model)
    assert losses(resumed)[-3:] == losses(whole)[-3:]
    at_checkpoint = NexusForCausalLM.from_pretrained(checkpoint)
    assert not torch.equal(at_checkpoint.lm_head.weight, whole.model.lm_head.weight), "something was left to train"


@each_arm
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_recomputes_every_layer_once_and_changes_no_gradient(reentrant, arm):
    ids = torch.randint(1, 64, (2, 12))
    plain, saving = arms.build(**arm).train(), arms.build(**arm).train()
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    for layer in saving.model.layers:
        layer.input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    plain(ids, labels=ids, use_cache=False).loss.backward()  # as `saving` does
    saving(ids, labels=ids).loss.backward()
    assert len(calls) == 2 * len(saving.model.layers)
    theirs = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        assert parameter.grad.any()
        assert torch.equal(parameter.grad, theirs[name].grad), name


def test_bf16_autocast_learns(tmp_path):
    row = examples(1)
    run = trainer(build(), tmp_path, row * 8, bf16=True, max_steps=30)
    run.train()
    assert losses(run)[-1] < 0.5 * losses(run)[0]
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())


def test_torch_compile_gives_the_same_losses(tmp_path):
    """Forward and backward passes are traced. Generation is compiled to machine code too, in test_generation."""
    graphs = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    graphs.clear()
    plain = trainer(build(), tmp_path)
    plain.train()
    assert not graphs
    # Only now: accelerate keeps what is to be compiled in a state that all trainers share.
    compiled = trainer(build(), tmp_path, torch_compile_backend="aot_eager")
    compiled.train()
    assert graphs["unique_graphs"] > 0
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-3)
    assert losses(plain)[0] != losses(plain)[1]


@each_arm
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_packed_rows_equal_rows_apart(backend, arm):
    """Padding-free batches: rows of different lengths in one, told apart by position_ids. Tolerance 1e-5."""
    rows = [{"input_ids": row["input_ids"][: 5 + 3 * number]} for number, row in enumerate(examples(3))]
    model = arms.build(**arm, attn_implementation=backend)
    packed = DataCollatorWithFlattening(return_tensors="pt")(rows)
    together = model(input_ids=packed["input_ids"], position_ids=packed["position_ids"], use_cache=False).logits[0]
    apart = torch.cat([model(torch.tensor([row["input_ids"]])).logits[0] for row in rows])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    unaware = model(input_ids=packed["input_ids"], use_cache=False).logits[0]
    assert (unaware - apart).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("head", "targets"),
    [
        (NexusForSequenceClassification, {"labels": torch.tensor([0, 2])}),
        (NexusForTokenClassification, {"labels": torch.arange(18).reshape(2, 9) % 3}),
        (NexusForQuestionAnswering, {"start_positions": torch.tensor([1, 4]), "end_positions": torch.tensor([3, 8])}),
    ],
)
def test_heads_learn_save_and_load(head, targets, tmp_path):
    torch.manual_seed(0)
    model = head(NexusConfig(**SHAPE, num_labels=3, classifier_dropout=0.0))
    ids = torch.randint(1, 64, (2, 9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(40):
        loss = model(ids, **targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
    assert history[-1] < 0.3 * history[0]
    model.eval().save_pretrained(tmp_path)
    loaded = head.from_pretrained(tmp_path).eval()
    for expected, actual in zip(model(ids)[:2], loaded(ids)[:2], strict=True):
        if isinstance(expected, torch.Tensor):
            assert torch.equal(expected, actual)


def test_a_sequence_is_classified_by_its_last_token_that_is_not_padding():
    torch.manual_seed(0)
    model = NexusForSequenceClassification(NexusConfig(**SHAPE, num_labels=3)).eval()
    ids = torch.randint(1, 64, (1, 9))
    padded = torch.cat((ids, torch.zeros(1, 4, dtype=torch.long)), dim=1)
    torch.testing.assert_close(model(padded).logits, model(ids).logits, atol=1e-5, rtol=0)
    assert (model(padded).logits - model(ids[:, :-1]).logits).abs().max() > 1e-3


GOLDEN = Path(__file__).parent.parent / "golden"


def test_a_checkpoint_of_an_earlier_version_still_gives_its_logits():
    """tests/golden is of version 0.1 (see its README); what it computes stays so. Tolerance 1e-5."""
    golden = json.loads((GOLDEN / "logits.json").read_text())
    model = NexusForCausalLM.from_pretrained(GOLDEN).eval()
    actual = model(torch.tensor([golden["input_ids"]])).logits[0]
    torch.testing.assert_close(actual, torch.tensor(golden["logits"]), atol=1e-5, rtol=0)
    assert actual.std() > 0.5


@pytest.mark.parametrize("kind", ["llama3", "yarn", "linear", "dynamic"])
def test_rope_scaling_survives_saving_and_loading(kind, tmp_path):
    rope = {"rope_type": kind, "rope_theta": 54321.0, "factor": 4.0}
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = 32
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = build(rope_parameters=rope).eval()
    model.save_pretrained(tmp_path)
    loaded = NexusForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.rope_parameters == model.config.rope_parameters
    assert torch.equal(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    ids = torch.randint(1, 64, (1, 12))
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    unscaled = build(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}).eval()
    assert (unscaled(ids).logits - model(ids).logits).abs().max() > 1e-4


def test_predictions_hold_no_cache(tmp_path):
    """Even if the model is told to make one: Trainer could not put caches of several batches together."""
    predicted = trainer(build(), tmp_path, use_cache=True).predict(examples(4))
    assert predicted.predictions.shape == (4, 12, 64)
