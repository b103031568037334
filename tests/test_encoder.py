"""Encoders, whose tokens see both sides: against the definition, with padding anywhere, their heads and tools."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from arms import ARMS, SHAPE
from arms import build as build_arm
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    DynamicCache,
    Trainer,
    TrainingArguments,
    pipeline,
)

import checkpoints
import nexus_transformers
import reference
from nexus_transformers import (
    NexusConfig,
    NexusForCausalLM,
    NexusForMaskedLM,
    NexusForQuestionAnswering,
    NexusForSequenceClassification,
    NexusForTokenClassification,
)

LENGTH = 12
FORMS = ARMS | {
    "order 1": {"attention_order": 1},
    "no gates": {"attention_order": 2, "inner_gate": False},
    "inner window": {"attention_order": 3, "inner_window": 2},
    "inner window of 1": {"attention_order": 2, "inner_window": 1},
    "inner window, separate": {"attention_order": 2, "inner_attention": "separate", "inner_window": 2},
    "inner window, self": {"attention_order": 2, "inner_attention": "self", "inner_window": 2},
}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
each_backend = pytest.mark.parametrize("backend", ["eager", "sdpa"])


def build(model_class=NexusForMaskedLM, **changes):
    return build_arm(model_class=model_class, **{"is_causal": False} | changes)


def padded() -> dict[str, torch.Tensor]:
    """Five sequences: whole, and with padding on the left, on the right, on both sides and in the middle."""
    ids = torch.randint(1, SHAPE["vocab_size"], (5, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[2, 9:] = mask[3, :2] = mask[3, 10:] = mask[4, 5:8] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "position_ids": torch.arange(LENGTH).expand(5, -1)}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0, check_dtype=False)


@torch.no_grad()
@each_backend
@each_form
def test_an_encoder_computes_the_definition(form, backend):
    model, inputs = build(**form), padded()
    model.set_attn_implementation(backend)
    tokens = inputs["attention_mask"].bool()
    expected = reference.logits(model.state_dict(), model.config, **inputs)
    assert_close(model(**inputs).logits[tokens], expected[tokens])


@each_form
def test_the_gradient_is_that_of_the_definition(form):
    model, inputs = build(**form), padded()
    tokens, parameters = inputs["attention_mask"].bool(), dict(model.named_parameters())
    twins = {name: parameter.detach().double().requires_grad_() for name, parameter in parameters.items()}
    loss = model(**inputs).logits[tokens].square().mean()
    actual = torch.autograd.grad(loss, parameters.values())
    loss = reference.logits(twins, model.config, **inputs)[tokens].square().mean()
    expected = torch.autograd.grad(loss, twins.values())
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, 1e-7 + 1e-4 * other.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize(
    "form, wrong",
    [
        ({"attention_order": 2}, {"is_causal": True}),
        ({"attention_order": 1}, {"is_causal": True}),
        ({"attention_order": 2, "inner_window": 2}, {"inner_window": 3}),
        ({"attention_order": 2, "inner_window": 2}, {"inner_window": 1}),
        ({"attention_order": 2, "inner_window": 2}, {"inner_window": None}),
    ],
    ids=str,
)
def test_the_comparison_notices_a_wrong_field(form, wrong):
    model, inputs = build(**form), padded()
    for name, value in wrong.items():
        setattr(model.config, name, value)
    weights, tokens = model.state_dict(), inputs["attention_mask"].bool()
    expected = reference.logits(weights, model.config, **inputs)
    for name in wrong:
        setattr(model.config, name, (form | {"is_causal": False})[name])
    assert (model(**inputs).logits - expected)[tokens].abs().max() > 1e-3


@torch.no_grad()
@each_backend
def test_a_window_is_two_sided(backend):
    """And a ready mask, (B, 1, T, T), may say the same."""
    ids = padded()["input_ids"]
    position = torch.arange(LENGTH)
    near = ((position[:, None] - position).abs() <= 3)[None, None].expand(len(ids), -1, -1, -1)
    windowed, whole = build(sliding_window=3), build()
    windowed.set_attn_implementation(backend)
    assert_close(windowed(ids).logits, whole(ids, near).logits)
    assert (build(sliding_window=4)(ids).logits - whole(ids, near).logits).abs().max() > 1e-3


@torch.no_grad()
def test_a_two_sided_window_is_not_computed_in_blocks():
    """Those that `mask_in_blocks` makes of a long sequence hold no keys after their queries."""
    model, ids = build(attention_order=2, inner_window=3), torch.randint(1, SHAPE["vocab_size"], (2, 80))
    model.set_attn_implementation("sdpa")
    assert_close(model(ids).logits, reference.logits(model.state_dict(), model.config, ids))


@torch.no_grad()
def test_inner_levels_cut_a_ready_mask_to_their_window():
    model, inputs = build(attention_order=2, inner_window=2), padded()
    ready = inputs["attention_mask"].bool()[:, None, None, :].expand(-1, 1, LENGTH, -1)
    tokens = inputs["attention_mask"].bool()
    expected = model(**inputs).logits[tokens]
    assert_close(model(inputs["input_ids"], ready).logits[tokens], expected)


def test_there_is_no_cache():
    model, ids = build(), padded()["input_ids"]
    assert "past_key_values" not in model(ids) and "cache" not in model(ids)
    outputs = model.model(ids, use_cache=True)
    assert outputs.get("cache", outputs.get("past_key_values")) is None
    with pytest.raises(ValueError, match="A cache needs a causal model, and this one is an encoder"):
        model.model(ids, cache=DynamicCache())


@torch.no_grad()
def test_a_decoder_can_be_read_as_an_encoder(tmp_path):
    """To go on training it with masked tokens. The head may be tied; a classifier then reads the mean."""
    torch.manual_seed(0)
    NexusForCausalLM(NexusConfig(**SHAPE | {"tie_word_embeddings": True})).save_pretrained(tmp_path)
    model = NexusForMaskedLM.from_pretrained(tmp_path, is_causal=False)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    inputs = padded()
    tokens = inputs["attention_mask"].bool()
    assert_close(model(**inputs).logits[tokens], reference.logits(model.state_dict(), model.config, **inputs)[tokens])
    classifier, ids = NexusForSequenceClassification.from_pretrained(tmp_path, is_causal=False), inputs["input_ids"][:1]
    assert_close(classifier(ids).logits, classifier.score(classifier.model(ids).last_hidden_state.mean(1)))


@pytest.mark.slow  # its kernel is compiled
@torch.no_grad()
def test_flex_attention_agrees():
    """A length at which PyTorch's own kernel is right on every CPU, see test_attention_backends.py."""
    model = build(attention_order=2, inner_window=7)
    ids, mask = torch.randint(1, 64, (2, 64)), torch.ones(2, 64, dtype=torch.long)
    mask[0, :11] = mask[1, 30:40] = 0
    expected = model(ids, mask).logits[mask.bool()]
    model.set_attn_implementation("flex_attention")
    assert_close(model(ids, mask).logits[mask.bool()], expected, 2e-4)


def test_a_class_of_the_other_kind_is_refused():
    encoder = build().config
    with pytest.raises(ValueError, match=r"NexusForCausalLM needs a causal model.*use NexusForMaskedLM"):
        NexusForCausalLM(encoder)
    with pytest.raises(ValueError, match="NexusForCausalLM needs a causal model"):
        AutoModelForCausalLM.from_config(encoder)
    with pytest.raises(ValueError, match="set is_causal=False"):
        NexusForMaskedLM(NexusConfig(**SHAPE))


@pytest.mark.parametrize(
    "wrong, reason",
    [
        ({"is_causal": True, "lm_head_transform": True}, "lm_head_transform=True: only encoders have it"),
        ({"is_causal": True, "token_dropout": True, "mask_token_id": 3}, "token_dropout=True: only encoders have it"),
        ({"token_dropout": True}, "needs mask_token_id"),
        ({"rope_frequencies": [1.0]}, "rope_frequencies has 1 numbers: must be 4"),
        ({"rope_frequencies": [1.0, 0.5, 0.2, float("nan")]}, "must be 4, finite"),
        (
            {"rope_frequencies": [1.0] * 4, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "rope_type='default'",
        ),
    ],
    ids=str,
)
def test_what_no_encoder_has_is_refused(wrong, reason):
    with pytest.raises(StrictDataclassError, match=reason):
        NexusConfig(**SHAPE | {"is_causal": False} | wrong)


@torch.no_grad()
def test_every_attention_call_is_told_that_it_is_not_causal():
    """Without padding there is no mask: then it is all that a backend goes by."""
    for form in FORMS.values():
        calls = [module for module in build(**form).modules() if hasattr(module, "num_key_value_groups")]
        assert calls and all(call.is_causal is False for call in calls)
    model, ids = build(attention_order=2), padded()["input_ids"]
    expected = reference.logits(model.state_dict(), model.config, ids)
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        assert_close(model(ids).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("inner_attention", ["shared", "separate", "self"])
def test_attention_functions_get_windows_in_flash_attention_s_meaning(inner_attention):
    """Transformers hands it w - 1 tokens on each side, as of a causal window, whatever the model."""
    fields = {"sliding_window": 5, "sliding_layers": [0], "inner_window": 2, "attention_order": 2}
    model = build(inner_attention=inner_attention, **fields)
    sizes = {
        name.split(".")[-1]: module.sliding_window
        for name, module in model.model.layers[0].named_modules()
        if hasattr(module, "num_key_value_groups")
    }
    assert sizes.pop("outer") == 5 + 1 and set(sizes.values()) == {2 + 1}


@torch.no_grad()
def test_token_dropout_counts_the_masked_among_the_tokens():
    """Not among the padding; and without masked tokens embeddings are smaller, as if there had been some."""
    model = build(token_dropout=True, mask_token_id=3).model
    ids = torch.tensor([[3, 5, 6, 7, 0, 0, 0, 0], [5, 6, 7, 8, 9, 5, 6, 7]])
    seen = {}
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.update(embeddings=args[0]))
    model(ids, attention_mask=(ids != 0).long())
    plain = model.embed_tokens(ids)
    assert seen["embeddings"][0, 0].abs().max() == 0
    assert_close(seen["embeddings"][0, 1:4], plain[0, 1:4] * 0.88 / 0.75)
    assert_close(seen["embeddings"][1], plain[1] * 0.88)
    model(inputs_embeds=plain)
    assert torch.equal(seen["embeddings"], plain)


def test_serving_engines_are_refused():
    from transformers import AttentionInterface

    AttentionInterface.register("vllm", lambda *_, **__: None)
    with pytest.raises(ValueError, match="A serving engine needs a causal model"):
        NexusForMaskedLM._from_config(build().config, attn_implementation="vllm")


# Heads


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
def test_a_classifier_reads_what_it_says_whatever_the_padding(pooling):
    model = build(NexusForSequenceClassification, classifier_pooling=pooling, num_labels=3)
    inputs = padded()
    states = model.model(**inputs).last_hidden_state
    for row, (state, mask) in enumerate(zip(states, inputs["attention_mask"].bool(), strict=True)):
        tokens = state[mask]
        read = {"last": tokens[-1], "first": tokens[0], "mean": tokens.mean(0)}[pooling]
        assert_close(model(**inputs).logits[row], model.score(read))


def test_a_classifier_reads_the_mean_of_an_encoder_and_the_last_token_of_a_decoder():
    ids = padded()["input_ids"][:1]
    for is_causal, place in ((False, slice(None)), (True, slice(-1, None))):
        model = build(NexusForSequenceClassification, is_causal=is_causal)
        read = model.model(ids).last_hidden_state[:, place].mean(1)
        assert_close(model(ids).logits, model.score(read))
    with pytest.raises(StrictDataclassError, match="classifier_pooling='cls'"):
        NexusConfig(**SHAPE, classifier_pooling="cls")


def test_a_classifier_needs_to_know_the_padding():
    model, ids = build(NexusForSequenceClassification), padded()["input_ids"][:1]
    with pytest.raises(ValueError, match=r"classifier_pooling='mean' needs an attention_mask of \(B, T\)"):
        model(ids, torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool))
    with pytest.raises(ValueError, match="A cache needs a causal model"):
        model(ids, cache=DynamicCache())


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 2, 0, 1]), torch.randn(5, 3)], ids=["one", "several"])
def test_a_classifier_learns(labels):
    model = build(NexusForSequenceClassification, num_labels=3)
    loss = model(**padded(), labels=labels).loss
    loss.backward()
    assert loss > 0 and model.score.weight.grad.abs().sum() > 0


def test_tokens_and_answers():
    inputs = padded()
    labels = torch.randint(2, (5, LENGTH))
    assert build(NexusForTokenClassification)(**inputs, labels=labels).loss > 0
    ends = {"start_positions": torch.arange(5), "end_positions": torch.arange(5) + 3}
    assert build(NexusForQuestionAnswering)(**inputs, **ends).loss > 0


# Tools


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted EuroBERT with a tokenizer that has a mask."""
    path = tmp_path_factory.mktemp("encoder")
    source = checkpoints.make("eurobert", **checkpoints.SHAPES["eurobert"])
    tokenizer = checkpoints.tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|endoftext|>"})
    source.save_pretrained(path / "source")
    tokenizer.save_pretrained(path / "source")
    return path / "source"


def test_convert_verify_fill_in_and_back(folder, nexus, tmp_path):
    status, _, errors = nexus("convert", folder, tmp_path / "nexus", "--order", "2")
    assert status == 0, errors
    model = NexusForMaskedLM.from_pretrained(tmp_path / "nexus")
    assert not model.config.is_causal and len(model.gates()) == 2 * model.config.num_layers
    assert "fill-mask" in (tmp_path / "nexus" / "README.md").read_text()
    fill = pipeline("fill-mask", str(tmp_path / "nexus"), trust_remote_code=True)
    reference_fill = pipeline("fill-mask", str(folder))
    text = f"The class {fill.tokenizer.mask_token} is"
    assert [each["token"] for each in fill(text)] == [each["token"] for each in reference_fill(text)]
    status, _, errors = nexus("verify", folder, tmp_path / "nexus")
    assert status == 0, errors
    status, _, errors = nexus("convert", tmp_path / "nexus", tmp_path / "again", "--to-source")
    assert status == 0, errors
    again, source = (AutoModelForMaskedLM.from_pretrained(path) for path in (tmp_path / "again", folder))
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), source.parameters(), strict=True))


def test_the_example_learns_proteins_and_goes_on(tmp_path, monkeypatch, capsys):
    script = Path(nexus_transformers.__file__).parent / "examples" / "proteins.py"

    def run(out, *arguments):
        monkeypatch.setattr("sys.argv", ["proteins.py", str(out), "--batch", "8", *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")
        return [float(number) for number in re.search(r"(\S+) -> (\S+)\n", capsys.readouterr().out).groups()]

    _, after = run(tmp_path / "one", "--steps", 40)
    assert after > 0.04, "amino acids, not special tokens"
    fasta = tmp_path / "few.fasta"
    fasta.write_text(">a protein\nMKTAYIAKQR\nQISFVKSHFSRQ\n>another\nmktayiakqrqisf vkshfsrq\n" * 4)
    run(tmp_path / "two", "--steps", 2, "--fasta", fasta, "--model", tmp_path / "one")
    assert not NexusForMaskedLM.from_pretrained(tmp_path / "two").config.is_causal
    read = runpy.run_path(str(script))["read_fasta"]
    assert read(fasta) == ["MKTAYIAKQRQISFVKSHFSRQ"] * 8


def test_trainer_with_the_collator_of_masked_language_models(tmp_path):
    tokenizer = checkpoints.tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|endoftext|>"})
    ids = tokenizer("class of a class: the class is a class. " * 4)["input_ids"][:32]
    model = build(vocab_size=checkpoints.VOCAB_SIZE, attention_order=[2, 1])
    arguments = TrainingArguments(
        str(tmp_path), max_steps=30, learning_rate=1e-2, report_to=[], use_cpu=True, logging_steps=10, save_steps=30
    )
    data = [{"input_ids": ids, "attention_mask": [1] * len(ids)}] * 8
    trainer = Trainer(model, arguments, DataCollatorForLanguageModeling(tokenizer), data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert NexusForMaskedLM.from_pretrained(tmp_path / "checkpoint-30").config.is_causal is False


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_an_empty_text_in_a_batch_leaves_everything_finite(pooling):
    model = build(NexusForSequenceClassification, classifier_pooling=pooling)
    mask = torch.tensor([[0] * 5, [1] * 5])
    outputs = model(torch.randint(1, 60, (2, 5)), attention_mask=mask, labels=torch.tensor([0, 1]))
    outputs.loss.backward()
    assert outputs.logits.isfinite().all() and outputs.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("row", ["padding", "masked"])
def test_token_dropout_of_a_row_without_tokens_leaves_everything_finite(row):
    model = build(token_dropout=True, mask_token_id=3)
    ids = torch.randint(4, 60, (2, 5))
    mask = torch.ones_like(ids)
    if row == "padding":
        mask[0] = 0
    else:
        ids[0] = 3
    outputs = model(ids, attention_mask=mask, labels=ids)
    outputs.loss.backward()
    assert outputs.logits.isfinite().all() and outputs.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
