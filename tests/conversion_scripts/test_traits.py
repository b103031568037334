"""Traits of real checkpoints: each is converted to the same function and settings, or refused with the reason."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

import checkpoints
from nexus_transformers.conversion_scripts.checkpoint.open import open_source
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.conversion_scripts.families.spellings import with_old_spellings
from nexus_transformers.conversion_scripts.printing import notes
from nexus_transformers.conversion_scripts.to_source import convert_to_source
from nexus_transformers.conversion_scripts.verification.verify import verify
from nexus_transformers.errors import CheckpointError, ConversionError, VerificationError

ids = torch.arange(1, 41)[None]


@pytest.fixture
def source(llama_folder, tmp_path):
    return Path(shutil.copytree(llama_folder, tmp_path / "source"))


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def change_weights(folder: Path, change) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def assert_same(source: Path, out: Path) -> None:
    """As anyone loads them: the same dtype, the same logits, the same generation."""
    expected, actual = load(source), load(out)
    assert expected.dtype == actual.dtype
    assert torch.equal(expected(ids).logits, actual(ids).logits)
    metadata = ("transformers_version", "_from_model_config", "_commit_hash")
    settings = [
        {name: value for name, value in model.generation_config.to_dict().items() if name not in metadata}
        for model in (expected, actual)
    ]
    assert settings[0] == settings[1]
    options = {"max_new_tokens": 8, "pad_token_id": 0}
    assert torch.equal(generate(expected, options), generate(actual, options))


def generate(model, options: dict) -> torch.Tensor:
    torch.manual_seed(0)
    return model.generate(ids, **options)


@pytest.mark.parametrize("said", ["bfloat16", "float16", None])
def test_the_dtype_is_the_one_that_the_source_loads_in(said, source, tmp_path):
    """float32 weights, and a config.json that says another dtype, or none."""
    change_config(source, dtype=said)
    convert(source, tmp_path / "out", verify=False)
    assert_same(source, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.float32
    convert_to_source(tmp_path / "out", tmp_path / "back", verify=False)
    assert_same(source, tmp_path / "back")


def test_without_a_dtype_in_config_json_mixed_weights_load_as_their_first(source, tmp_path):
    change_config(source, dtype=None)
    change_weights(source, lambda t: {n: w.bfloat16() if "embed" in n else w for n, w in t.items()})
    convert(source, tmp_path / "out", verify=False)
    assert_same(source, tmp_path / "out")


def test_generation_settings_in_config_json_get_a_file_of_their_own(source, tmp_path):
    (source / "generation_config.json").unlink()
    settings = {"do_sample": True, "temperature": 0.5, "top_k": 3, "bad_words_ids": [[7]], "max_length": 60}
    change_config(source, **settings, repetition_penalty=1.3)
    convert(source, tmp_path / "out", verify=False)
    assert_same(source, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.5


def test_verification_does_not_depend_on_generation_settings(source, tmp_path):
    """A model that by default returns dicts, never says some words, and outputs more than logits."""
    (source / "generation_config.json").unlink()
    change_config(
        source,
        return_dict_in_generate=True,
        output_scores=True,
        bad_words_ids=[[token] for token in range(300)],
        output_hidden_states=True,
        output_attentions=False,
        return_dict=False,
        min_length=40,
        forced_bos_token_id=5,
    )
    figures = convert(source, tmp_path / "out")["verification"]
    assert (figures["max_abs_logit_difference"], figures["greedy_equal"], figures["other_settings"]) == (0.0, True, [])


def test_the_way_back_writes_the_spelling_of_transformers_4_too(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    source = checkpoints.llama(
        tmp_path / "source", rope_parameters=rope | {"original_max_position_embeddings": 64}, dtype=torch.bfloat16
    )
    convert(source, tmp_path / "nexus", verify=False)
    convert_to_source(tmp_path / "nexus", tmp_path / "back", verify=False)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["torch_dtype"], config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (
        "bfloat16",
        5e5,
        5e5,
    )
    assert config["rope_scaling"] == {
        **{name: value for name, value in rope.items() if name != "rope_theta"},
        "original_max_position_embeddings": 64,
    }
    assert_same(source, tmp_path / "back")
    old = {name: value for name, value in config.items() if name not in ("rope_parameters", "dtype")}
    assert LlamaConfig(**old).rope_parameters["rope_theta"] == 5e5


@pytest.mark.parametrize("family", sorted(checkpoints.SHAPES))
@pytest.mark.parametrize("scaling", [None, "linear", "dynamic"])
def test_either_spelling_alone_says_the_same(family, scaling):
    """As Transformers reads it: a tool that knows the old names only builds the same model."""
    shape = dict(checkpoints.SHAPES[family])
    if "rope_parameters" not in shape:
        pytest.skip("has a theta alone, spelled the same in both")
    rope, scaled = shape["rope_parameters"], {"rope_type": scaling, "factor": 2.0} if scaling else {}
    if "full_attention" in rope:
        if family == "olmo3":  # whose old spelling is read as one of this theta
            rope = {kind: {"rope_type": "default", "rope_theta": 500000.0} for kind in rope}
        shape["rope_parameters"] = {**rope, "full_attention": {**rope["full_attention"], **scaled}}
    elif family != "phi3":
        shape["rope_parameters"] = {**rope, **scaled}
    model = checkpoints.make(family, **shape)
    config = with_old_spellings(json.loads(model.config.to_json_string()))
    if scaling and family != "phi3":
        name = "rope_type" if "full_attention" in rope else "type"
        assert config["rope_scaling"] == {name: scaling, "factor": 2.0}  # OLMo 2 of Transformers 4 refuses any more
    old = {name: value for name, value in config.items() if name not in ("rope_parameters", "dtype")}
    for spelled in (old, config):
        again = type(model.config)(**spelled).rope_parameters
        assert {name: again[name] for name in model.config.rope_parameters} == model.config.rope_parameters


def test_phi_3_s_longrope_has_the_three_fields_that_transformers_4_wants():
    rope = {"rope_type": "longrope", "rope_theta": 5e3, "partial_rotary_factor": 1.0}
    rope |= {"short_factor": [1.1] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}
    shape = {**checkpoints.SHAPES["phi3"], "rope_parameters": rope, "original_max_position_embeddings": 64}
    model = checkpoints.make("phi3", **shape)
    config = with_old_spellings(json.loads(model.config.to_json_string()))
    assert set(config["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    old = {name: value for name, value in config.items() if name not in ("rope_parameters", "dtype")}
    for spelled in (old, config):
        again = type(model.config)(**spelled).rope_parameters
        assert {name: again[name] for name in model.config.rope_parameters} == model.config.rope_parameters


LICENCES = ["LICENSE", "LICENSE.md", "LLAMA_LICENSE.txt", "NOTICE", "Notice.txt", "USE_POLICY.md", "license-mit"]


def test_licence_files_travel_and_the_card_s_link_leads_to_them(source, tmp_path):
    for name in LICENCES:
        (source / name).write_text(f"{name} of the source")
    metadata = {"license": "other", "license_name": "own", "license_link": "LICENSE.md", "model-index": "not a list"}
    (source / "README.md").write_text(f"---\n{yaml.safe_dump(metadata)}---\n# A model\n")
    out, back = tmp_path / "out", tmp_path / "back"
    plan = convert(source, out, dry_run=True)
    assert set(LICENCES) <= set(plan["carried_over"]) and not set(LICENCES) & set(plan["left_behind"])
    assert convert(source, out, verify=False)["licence_files"] == LICENCES
    assert convert(source, out, verify=False)["unchanged"]
    (source / "NOTICE").write_text("another notice")
    with pytest.raises(CheckpointError, match="already holds a Nexus model"):
        convert(source, out, verify=False)
    (source / "NOTICE").write_text("NOTICE of the source")
    convert_to_source(out, back, verify=False)
    for folder in (out, back):
        assert all((folder / name).read_text() == f"{name} of the source" for name in LICENCES)
        card = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
        assert [card[name] for name in ("license", "license_name", "license_link")] == ["other", "own", "LICENSE.md"]


def test_an_adapter_beside_full_weights_is_refused(source, tmp_path):
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json beside full weights"):
        convert(source, tmp_path / "out", verify=False)
    assert not (tmp_path / "out").exists()


def test_two_sets_of_weights_are_refused(source, tmp_path):
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"both model\.safetensors and model\.safetensors\.index\.json"):
        convert(source, tmp_path / "out", verify=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_buffers_that_are_left_behind_may_have_any_dtype(dtype, tmp_path):
    source = checkpoints.save("gpt_neox", tmp_path / "source")
    mask = {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8).to(dtype)}
    change_weights(source, lambda t: t | mask)
    convert(source, tmp_path / "out", verify=False)
    expected, actual = load(source)(ids).logits, load(tmp_path / "out")(ids).logits
    assert (expected - actual).abs().max() < 1e-4 * expected.abs().max()  # fused products round otherwise


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_names_of_a_base_model(family, tmp_path):
    """As embedding models are stored. Without a head of its own, the embedding has to be it."""
    source = checkpoints.save(family, tmp_path / "source", tie_word_embeddings=True)
    prefix = "gpt_neox." if family == "gpt_neox" else "model."
    change_weights(source, lambda t: {name.removeprefix(prefix): weight for name, weight in t.items()})
    assert not any(name.startswith(prefix) for name in load_file(source / "model.safetensors"))
    out = tmp_path / "out"
    convert(source, out, verify=False)
    expected, actual = load(source)(ids).logits, load(out)(ids).logits
    assert (expected - actual).abs().max() <= 1e-4 * expected.abs().max() * (family == "gpt_neox")
    assert open_source(source).read(f"{prefix}layers.0.input_layernorm.weight").ndim == 1


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi3"])
def test_tied_weights_that_are_stored_under_the_name_of_the_head(family, tmp_path):
    """As safetensors' `save_model` does, and what saves with it."""
    source = checkpoints.save(family, tmp_path / "source", tie_word_embeddings=True)
    expected = load(source)(ids).logits
    names = {"model.embed_tokens.weight": "lm_head.weight", "gpt_neox.embed_in.weight": "embed_out.weight"}
    change_weights(source, lambda t: {names.get(name, name): weight for name, weight in t.items()})
    assert torch.equal(load(source)(ids).logits, expected)
    convert(source, tmp_path / "out", verify=False)
    actual = load(tmp_path / "out")(ids).logits
    assert (expected - actual).abs().max() <= 1e-4 * expected.abs().max() * (family != "llama")


def test_a_tensor_that_has_no_place_is_named_as_in_the_file(source, tmp_path):
    change_weights(source, lambda t: {f"_orig_mod.{name}": weight for name, weight in t.items()})
    with pytest.raises(ConversionError, match=r"tensor '_orig_mod\.model\.embed_tokens\.weight' has no place"):
        convert(source, tmp_path / "out", verify=False)


def test_whether_it_caches_keys_and_values_by_default_is_kept(source, tmp_path):
    change_config(source, use_cache=False)
    convert(source, tmp_path / "out", verify=False)
    convert_to_source(tmp_path / "out", tmp_path / "back", verify=False)
    assert [load(tmp_path / name)(ids).past_key_values for name in ("source", "out", "back")] == [None] * 3


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "holds an adapter only"),
        (["config.json", "model.fp16.safetensors"], "Transformers reads no others (model.fp16.safetensors)"),
        (["config.json", "sub/model.safetensors"], "has no weights"),
    ],
    ids=["adapter", "variant", "folder"],
)
def test_a_folder_without_weights_is_refused_with_what_it_has(files, reason, tmp_path):
    for name in files:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        convert(tmp_path / "source", tmp_path / "out")


INERT = {
    "quantization_config": None,
    "is_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "finetuning_task": None,
    "use_bfloat16": False,
    "tf_legacy_loss": False,
    "torchscript": False,
    "prefix": None,
    "_commit_hash": None,
    "gradient_checkpointing": True,
    "neftune_noise_alpha": 5,
    "num_logits_to_keep": 0,
    "use_flash_attention_2": True,
    "bos_token": "<s>",
    "_num_labels": 2,
    "base_model": "someone/model",
    "of_another_tool": None,
}


def test_inert_fields_of_old_dumps_and_of_training_are_accepted(source, tmp_path):
    change_config(source, **INERT)
    convert(source, tmp_path / "out", verify=False)
    assert_same(source, tmp_path / "out")
    change_config(source, attention_multiplier=0.5)
    with pytest.raises(ConversionError, match=r"attention_multiplier=0\.5 is unknown"):
        convert(source, tmp_path / "other", verify=False)


# What the check does with traits

TEMPLATES = {
    "cannot render": "{{ raise_exception('a system message first') }}",
    "is no template": "{% if %}",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_that_cannot_render_the_probe_is_skipped(template, source, tmp_path):
    (source / "chat_template.jinja").write_text(TEMPLATES[template])
    figures = convert(source, tmp_path / "out")["verification"]
    (skipped,) = figures["skipped"]
    assert skipped.startswith("chat template, at which the source itself fails (") and figures["greedy_equal"]
    assert notes(figures) == [f"not compared: {skipped}."]
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATES[template]


def test_of_several_chat_templates_without_a_default_each_is_compared(source, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = {"tool_use": "tools: {{ messages }}", "rag": "documents: {{ messages }}"}
    (source / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(source)
    out = tmp_path / "out"
    assert convert(source, out)["verification"]["skipped"] == []
    changed = next(file for file in out.rglob("*") if file.is_file() and b"documents: " in file.read_bytes())
    changed.write_text(changed.read_text().replace("documents: ", "files: "))
    with pytest.raises(VerificationError, match="chat template"):
        verify(source, out)


def test_a_chat_template_that_renders_the_time_is_compared_as_text(source, tmp_path):
    (source / "chat_template.jinja").write_text("{{ strftime_now('%H:%M:%S.%f') }} {{ messages }}")
    out = tmp_path / "out"
    assert convert(source, out)["verification"]["skipped"] == []
    (out / "chat_template.jinja").write_text("{{ strftime_now('%H:%M:%S.%f') }} {{ messages[0] }}")
    with pytest.raises(VerificationError, match="chat template"):
        verify(source, out)


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox"])
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json"])
def test_a_tokenizer_without_a_config_is_of_the_same_class_and_compared(family, form, tmp_path):
    """Transformers chooses its class by the model beside it."""
    source, out = checkpoints.save(family, tmp_path / "source"), tmp_path / "out"
    (source / "tokenizer_config.json").unlink()
    if form == "vocab.json":
        model = json.loads((source / "tokenizer.json").read_text())["model"]
        (source / "tokenizer.json").unlink()
        (source / "vocab.json").write_text(json.dumps(model["vocab"]))
        (source / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])))
    convert(source, out)
    expected, actual = (AutoTokenizer.from_pretrained(folder) for folder in (source, out))
    assert (type(expected), expected.all_special_tokens) == (type(actual), actual.all_special_tokens)
    assert expected("Hello Wörld 12")["input_ids"] == actual("Hello Wörld 12")["input_ids"]
    (out / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (out / form).write_text((out / form).read_text().replace("Ġthe", "Ġteh"))
    with pytest.raises(VerificationError):
        verify(source, out)


def test_an_inert_layer_in_the_middle_does_not_blind_the_check(tmp_path):
    """An inserted identity block: its output projections are zero."""
    source = checkpoints.llama(tmp_path / "source")
    inert = ("layers.1.self_attn.o_proj.weight", "layers.1.mlp.down_proj.weight")
    change_weights(source, lambda t: {n: w * 0 if n.endswith(inert) else w for n, w in t.items()})
    controls = convert(source, tmp_path / "out")["verification"]["negative_controls"]
    assert len(controls) == 2 and min(controls.values()) > 0.01
    assert not any("layers.1." in control or "layer 1 " in control for control in controls)


def test_what_overflows_alike_on_both_sides_is_equal_and_compared_in_float32_too(tmp_path):
    source = checkpoints.llama(tmp_path / "source", torch.float16)
    change_weights(source, lambda t: {n: w * 3e4 if n == "model.norm.weight" else w for n, w in t.items()})
    assert not torch.isfinite(load(source)(ids).logits).all()
    change_config(source, dtype="float16")
    out = tmp_path / "out"
    figures = convert(source, out)["verification"]
    convert_to_source(out, tmp_path / "back", verify=False)  # the report can be read
    assert figures["not_finite"] > 0 and figures["max_abs_logit_difference"] == 0.0
    assert (figures["in_float32"]["not_finite"], figures["in_float32"]["max_abs_logit_difference"]) == (0, 0.0)


def test_what_overflows_everywhere_is_checked_in_float32(tmp_path):
    source = checkpoints.llama(tmp_path / "source", torch.float16)
    large = ("up_proj.weight", "gate_proj.weight")
    change_weights(source, lambda t: {n: w.sign() * 6e4 if n.endswith(large) else w for n, w in t.items()})
    assert load(source)(ids).logits.isnan().all()
    controls = convert(source, tmp_path / "out")["verification"]["in_float32"]["negative_controls"]
    assert min(controls.values()) > 0.01


def test_half_of_the_check_is_on_random_tokens_and_some_beyond_the_window(tmp_path):
    source = checkpoints.save("mistral", tmp_path / "source", sliding_window=300, max_position_embeddings=1024)
    out = tmp_path / "out"
    figures = convert(source, out)["verification"]
    assert (figures["run_past"], figures["not_run_past"]) == (["sliding_window"], [])
    change_config(out, sliding_window=200)
    with pytest.raises(VerificationError, match=r"sliding_window=200, and its source has 300"):
        verify(source, out)


def test_the_check_goes_beyond_the_window_of_the_inner_levels_and_the_way_back_has_none(tmp_path, nexus):
    source = checkpoints.llama(tmp_path / "source", max_position_embeddings=1024)
    out, back = tmp_path / "out", tmp_path / "back"
    status, text, _ = nexus("convert", source, out, "--inner-window", "300", "--json")
    figures = json.loads(text)["verification"]
    assert (status, figures["run_past"], figures["not_run_past"]) == (0, ["inner_window"], [])
    config = json.loads((out / "config.json").read_text())
    assert (config["inner_window"], config["sliding_window"], config["sliding_layers"]) == (300, None, None)
    assert "attend to the last 300 tokens" in (out / "README.md").read_text()
    convert_to_source(out, back, verify=False)
    kept = json.loads((source / "config.json").read_text())
    assert kept.items() <= json.loads((back / "config.json").read_text()).items()
    assert "window" not in (back / "config.json").read_text()


def test_a_source_that_cannot_be_run_is_what_the_message_names(source, tmp_path, nexus):
    out = tmp_path / "out"
    convert(source, out, verify=False)
    change_config(source, auto_map={"AutoConfig": "configuration_other.Other"}, architectures=["LlamaForCausalLM"])
    assert nexus("verify", source, out)[0] == 0  # leftovers of remote code are not run
    (source / "tokenizer.json").write_text("{")
    status, _, errors = nexus("verify", source, out)
    assert (status, errors.count("\n")) == (1, 1)
    assert errors.startswith(f"error: {source}: Transformers itself cannot load and run the source")


@pytest.mark.parametrize("edited", [False, True])
def test_the_card_says_so_once_it_is_verified_unless_somebody_edited_it(edited, llama_folder, tmp_path, nexus):
    out = tmp_path / "out"
    assert nexus("convert", llama_folder, out, "--no-verify")[0] == 0
    card = out / "README.md"
    assert "ran with `--no-verify`" in card.read_text()
    if edited:
        card.write_text(card.read_text() + "Notes of mine.\n")
    before = card.read_text()
    assert nexus("verify", llama_folder, out)[0] == 0
    if edited:
        assert card.read_text() == before
    else:
        assert (
            "ran with `--no-verify`" not in card.read_text() and "| mean KL divergence | 0.0 nats |" in card.read_text()
        )


def test_family_without_the_way_back_is_refused(llama_folder, tmp_path, nexus):
    status, _, errors = nexus("convert", llama_folder, tmp_path / "out", "--family", "llama")
    assert (status, errors.count("\n")) == (1, 1) and "--to-source" in errors
