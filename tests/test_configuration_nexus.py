"""NexusConfig: what it accepts, derives, documents and saves, and that no field is without effect."""

import ast
import importlib
import inspect
import json
import re
from dataclasses import fields

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from nexus_transformers import (
    NexusConfig,
    NexusForCausalLM,
    NexusForMaskedLM,
    NexusForSequenceClassification,
    NexusForTokenClassification,
    NexusModel,
)

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
SEPARATE, SELF = {"inner_attention": "separate"}, {"inner_attention": "self"}
NOTHING_REFINED = {"refine_query": False, "refine_key": False}
INVALID = (StrictDataclassError, ValueError)
DOCSTRING = inspect.cleandoc(NexusConfig.__doc__)
IDS = torch.arange(12)[None]


def tiny(**changes) -> NexusConfig:
    return NexusConfig(**TINY | changes)


# Defaults and derived values


def test_defaults_that_depend_on_other_fields():
    config = NexusConfig()
    assert config.attention_order == config.layer_orders == [2] + [1] * 29
    assert config.num_hidden_layers == 31
    assert config.num_key_value_heads == config.num_attention_heads == 9
    assert config.head_dim == 576 // 9
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


def test_the_docstring_documents_every_field_and_nothing_else():
    headings = re.findall(r"^    (\w[\w, ]*?)(?: \(|:)", DOCSTRING, re.MULTILINE)
    assert sorted(", ".join(headings).split(", ")) == sorted(NexusConfig.__annotations__)


def test_the_docstring_states_the_true_defaults():
    stated = dict(re.findall(r"^    (\w+) \(.+?, defaults to `?([^`)]+)`?\)", DOCSTRING, re.MULTILINE))
    stated |= {"bos_token_id": "1", "eos_token_id": "2"}  # these two share a line with pad_token_id
    true = {field.name: field.default for field in fields(NexusConfig) if field.name in NexusConfig.__annotations__}
    assert {name: ast.literal_eval(value) for name, value in stated.items()} == {
        name: default for name, default in true.items() if default is not None
    }


@pytest.mark.parametrize(
    "attention_order, layer_orders", [(1, [1, 1, 1]), (3, [3, 3, 3]), ([3, 1, 2], [3, 1, 2])], ids=str
)
def test_an_order_is_for_all_layers_or_for_each(attention_order, layer_orders):
    assert tiny(num_layers=3, attention_order=attention_order).layer_orders == layer_orders


@pytest.mark.parametrize(
    "changes, slots",
    [
        ({"attention_order": 1}, 3),
        ({"attention_order": 2}, 6),
        ({"attention_order": 3}, 9),
        ({"attention_order": [3, 1, 2]}, 6),
        ({"attention_order": 3, "refine_query": False}, 9),
        # all levels with the same W_K have the same keys if these are not refined
        ({"attention_order": 1, "refine_key": False}, 3),
        ({"attention_order": 3, "refine_key": False}, 3),
        ({"attention_order": [3, 1, 2], "refine_key": False}, 3),
        # values of their own need a slot
        ({"attention_order": 3, "refine_key": False, "refine_value": True}, 6),
        ({"attention_order": 2, **SEPARATE}, 9),
        ({"attention_order": [2, 1, 1], "refine_value": True, **SEPARATE}, 6),
        ({"attention_order": [2, 1, 1], "refine_key": False, **SEPARATE}, 4),
        ({"attention_order": 1, **SEPARATE}, 3),
        ({"attention_order": [3, 1, 1], **SELF}, 7),
        ({"attention_order": [3, 1, 1], "refine_query": False, **SELF}, 5),
    ],
    ids=str,
)
def test_num_hidden_layers_counts_the_slots_of_the_cache(changes, slots):
    assert tiny(num_layers=3, **changes).num_hidden_layers == slots


@pytest.mark.parametrize(
    "keywords, rope_parameters",
    [
        ({"rope_theta": 500.0}, {"rope_type": "default", "rope_theta": 500.0}),
        (
            {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
        ),
    ],
)
def test_rope_keywords_are_folded_into_rope_parameters(keywords, rope_parameters):
    config = tiny(**keywords)
    assert config.rope_parameters == rope_parameters
    assert not hasattr(config, "rope_theta")


# Rejected values


@pytest.mark.parametrize(
    "named, changes",
    [
        ("attention_order", {"attention_order": 0}),
        ("attention_order", {"attention_order": -1}),
        ("attention_order", {"attention_order": [2, 0]}),
        ("attention_order", {"attention_order": [2]}),
        ("attention_order", {"attention_order": [2, 1, 1]}),
        ("attention_order", {"attention_order": []}),
        ("num_layers", {"attention_order": [], "num_layers": 0}),
        ("attention_order", {"attention_order": True}),
        ("attention_order", {"attention_order": [True, 2]}),
        ("attention_order", {"attention_order": 2.0}),
        ("attention_order", {"attention_order": "2"}),
        ("attention_order", {"attention_order": [2, None]}),
        ("refine_query, refine_key and refine_value are all off", NOTHING_REFINED),
        ("refine_query, refine_key and refine_value are all off", {**NOTHING_REFINED, "attention_order": [1, 2]}),
        ("values are refined once", {**NOTHING_REFINED, "refine_value": True, "attention_order": 3}),
        ("inner_attention='own'", {"inner_attention": "own"}),
        ("inner_attention='separate' is defined up to order 2", {**SEPARATE, "attention_order": [1, 3]}),
        ("refine_value=True", {**SELF, "refine_value": True}),
        ("inner_output_projection=True", {**SELF, "inner_output_projection": True}),
        ("Set inner_output_projection=True", {"head_dim": 16}),
        ("Set inner_output_projection=True", {**SEPARATE, "head_dim": 16}),
        ("Nexus 0.1", {"share_projections": True}),
        ("num_key_value_heads=3", {"num_key_value_heads": 3}),
        ("num_key_value_heads=8", {"num_key_value_heads": 8}),
        ("num_key_value_heads=0", {"num_key_value_heads": 0}),
        ("num_key_value_heads=-2", {"num_key_value_heads": -2}),
        ("head_dim=7", {"head_dim": 7}),
        ("head_dim=0", {"head_dim": 0}),
        ("head_dim=-2", {"head_dim": -2}),
        ("head_dim=0", {"hidden_size": 2}),
        ("vocab_size=0", {"vocab_size": 0}),
        ("hidden_size=0", {"hidden_size": 0}),
        ("intermediate_size=0", {"intermediate_size": 0}),
        ("num_layers=0", {"num_layers": 0}),
        ("num_attention_heads=0", {"num_attention_heads": 0, "num_key_value_heads": None}),
        ("num_attention_heads=-4", {"num_attention_heads": -4}),
        ("hidden_size", {"hidden_size": "32"}),
        ("hidden_size", {"hidden_size": 32.0}),
        ("num_layers", {"num_layers": True}),
        ("refine_key", {"refine_key": 1}),
        ("inner_gate", {"inner_gate": "yes"}),
        ("inner_gate_init", {"inner_gate_init": "0.1"}),
        ("rms_norm_eps", {"rms_norm_eps": None}),
        ("rope_parameters", {"rope_parameters": 500.0}),
        ("hidden_act", {"hidden_act": "swish2"}),
        ("norm_type", {"norm_type": "batchnorm"}),
        ("norm_position", {"norm_position": "around"}),
        ("two fields now: set float32_norm", {"float32_norm_and_rope": True}),
        ("as sliding_rope_parameters", {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}),
        ("residual_multiplier=1", {"residual_multiplier": 0.5, "parallel_residual": True}),
        ("embedding_multiplier=0", {"embedding_multiplier": 0}),
        ("attention_multiplier=-1", {"attention_multiplier": -1}),
        ("logits_scaling=inf", {"logits_scaling": float("inf")}),
        ("layers_without_rope=.* layers of 0 to", {"layers_without_rope": [99]}),
        ("sliding_rope_parameters=.* no layer has", {"sliding_rope_parameters": {}}),
        ("rope_type must be", {"sliding_rope_parameters": {"rope_type": "spiral"}, "sliding_window": 4}),
        (
            "sliding_rope_parameters=.* Missing required keys .*factor",
            {"sliding_rope_parameters": {"type": "linear"}, "sliding_window": 4},  # as it was once spelled
        ),
        ("parallel_residual=True", {"norm_position": "post", "parallel_residual": True}),
        ("qk_norm='head'", {"qk_norm": "head"}),
        ("sliding_window=1", {"sliding_window": 1}),  # caches would keep every token
        ("inner_window=1", {"inner_window": 1}),
        (
            "inner_window=6 is more than sliding_window=5, and the nested layers .0. have no window",
            {"inner_window": 6, "sliding_window": 5, "sliding_layers": [1]},
        ),
        ("sliding_layers", {"sliding_layers": [0]}),
        ("sliding_layers", {"sliding_window": 3, "sliding_layers": [0, 2]}),
        ("attention_dropout", {"attention_dropout": 1.5}),
        ("classifier_dropout", {"classifier_dropout": -0.1}),
    ],
    ids=str,
)
def test_a_value_that_no_model_can_have_is_an_error_naming_its_field(named, changes):
    with pytest.raises(INVALID, match=named):
        tiny(**changes)


def test_order_1_needs_no_branch_to_refine_and_no_width():
    assert tiny(attention_order=1, **NOTHING_REFINED, head_dim=16).num_hidden_layers == 2


@pytest.mark.parametrize("kind", ["shared", "separate", "self"])
def test_attention_calls_are_the_models_own(kind):
    """Names, slots and numbers of heads; what they project and store is counted by the costs' tests."""
    config = tiny(attention_order=[2, 1], inner_attention=kind)
    for calls, layer in zip(config.attention_calls(), model(config).model.layers, strict=True):
        assert [call.level for call in calls] == sorted(call.level for call in calls)
        assert calls[-1].name == "outer" and calls[-1].level == layer.self_attn.order
        for call in calls:
            module = layer.self_attn.get_submodule(call.name)
            assert (module.layer_idx, module.stores) == (call.slot, call.stores)
            assert module.num_key_value_groups * call.num_key_value_heads == call.num_query_heads


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("name", ["inner_gate_init", "attention_dropout"])
def test_whole_numbers_are_accepted_where_they_are_the_natural_values(name, value):
    assert getattr(tiny(**{name: value}), name) == value


def test_num_hidden_layers_cannot_be_given(tmp_path):
    tiny().save_pretrained(tmp_path)
    with pytest.raises(INVALID, match="`num_layers`"):
        tiny(num_hidden_layers=3)
    with pytest.raises(INVALID, match="`num_layers`"):
        tiny().num_hidden_layers = 3
    with pytest.raises(INVALID, match="`num_layers`"):
        NexusConfig.from_pretrained(tmp_path, num_hidden_layers=3)


@pytest.mark.parametrize("name", ["atention_order", "inner_gates", "num_layer", "hidden_sizes", "tie_word_embedding"])
def test_a_misspelt_field_is_refused_with_the_nearest_name(name):
    with pytest.raises(INVALID, match=rf"no field '{name}'. Did you mean '\w+'\?"):
        tiny(**{name: 2})


def test_fields_of_transformers_and_of_other_versions_are_kept(tmp_path):
    extra = {
        "torch_dtype": "float32",
        "output_attentions": True,
        "id2label": {0: "no"},
        "note": "mine",
        "rope_theta": 7.0,
    }
    extra |= {"use_sliding_window": False, "a_field_of_the_year_2030": 1}
    config = tiny(**extra)
    config.save_pretrained(tmp_path)
    again = NexusConfig.from_pretrained(tmp_path)
    assert again.note == "mine" and again.rope_parameters["rope_theta"] == 7.0 and again.a_field_of_the_year_2030 == 1


def test_kinds_of_slots_cannot_be_given():
    with pytest.raises(INVALID, match="set sliding_window and sliding_layers"):
        tiny(layer_types=["full_attention"] * 2)


def test_tuples_are_as_good_as_lists(tmp_path):
    given = {"attention_order": (2, 1), "sliding_window": 4, "sliding_layers": (1,), "eos_token_id": (2, 3)}
    config = tiny(**given)
    assert (config.attention_order, config.sliding_layers, config.eos_token_id) == ([2, 1], [1], [2, 3])
    config.attention_order = (1, 3)
    NexusForCausalLM(config).save_pretrained(tmp_path)
    assert NexusConfig.from_pretrained(tmp_path).layer_orders == [1, 3]


def test_an_old_release_of_transformers_is_refused_in_one_sentence(monkeypatch):
    source = inspect.getsource(importlib.import_module("nexus_transformers.configuration_nexus"))
    monkeypatch.setattr("transformers.__version__", "4.57.1")
    with pytest.raises(ImportError, match=r"5\.16\.1 or newer, and 4\.57\.1 is installed: pip install"):
        exec(compile(source, "configuration_nexus.py", "exec"), {"__name__": "old"})


def test_an_invalid_config_is_not_saved(tmp_path):
    config = tiny()
    config.attention_order = [2, 2, 2]
    with pytest.raises(INVALID, match="attention_order"):
        config.save_pretrained(tmp_path)


def test_the_default_order_is_filled_in_once_and_not_left_out_later():
    config = tiny()
    config.attention_order = None
    with pytest.raises(INVALID, match="attention_order=None"):
        NexusForCausalLM(config)


# Every field: saved, and of consequence. The observers below are what a field may change.


def model(config: NexusConfig) -> NexusForCausalLM:
    torch.manual_seed(0)
    return NexusForCausalLM(config).eval()


def logits(config):
    result = model(config)(IDS).logits
    assert result.isfinite().all()
    return result.tolist()


def bfloat16_logits(config):
    rounded = model(config).bfloat16()
    for name, parameter in rounded.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return rounded(IDS).logits.tolist()


def training_logits(config):
    torch.manual_seed(0)
    return model(config).train()(IDS).logits.tolist()


def classifier_training_logits(config):
    torch.manual_seed(0)
    classifier = NexusForTokenClassification(config).train()
    torch.manual_seed(0)
    return classifier(IDS).logits.tolist()


def hidden_states(config):
    torch.manual_seed(0)
    return NexusModel(config).eval()(IDS).last_hidden_state.tolist()


def pooled_logits(config):
    torch.manual_seed(0)
    return NexusForSequenceClassification(config).eval()(IDS[:1]).logits.tolist()


def masked_logits(config):
    torch.manual_seed(0)
    return NexusForMaskedLM(config).eval()(IDS).logits.tolist()


def parameter_shapes(config):
    return {name: parameter.shape for name, parameter in model(config).named_parameters()}


def returned_cache(config):
    return type(model(config)(IDS).past_key_values)


def generation_defaults(config):
    return model(config).generation_config.to_dict()


DYNAMIC_ROPE = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}

EFFECTS = {  # field: (changed value, what shows the change, what else must be set for it to show)
    "attention_order": (3, logits, {}),
    "refine_query": (False, logits, {}),
    "refine_key": (False, logits, {}),
    "refine_value": (True, logits, {}),
    "inner_attention": ("self", logits, {}),
    "inner_output_projection": (True, logits, {}),
    "inner_gate": (True, parameter_shapes, {}),
    "inner_gate_init": (0.5, logits, {"inner_gate": True}),
    "inner_scale": (False, logits, {}),
    "inner_window": (3, logits, {}),
    "is_causal": (False, hidden_states, {}),
    "vocab_size": (67, parameter_shapes, {}),
    "hidden_size": (48, parameter_shapes, {}),
    "intermediate_size": (40, parameter_shapes, {}),
    "num_layers": (3, parameter_shapes, {}),
    "num_attention_heads": (2, parameter_shapes, {}),
    "num_key_value_heads": (1, parameter_shapes, {}),
    "head_dim": (16, parameter_shapes, {"inner_output_projection": True}),
    "hidden_act": ("gelu", logits, {}),
    "max_position_embeddings": (8, logits, DYNAMIC_ROPE),
    "initializer_range": (0.1, logits, {}),
    "rms_norm_eps": (1e-2, logits, {}),
    "use_cache": (False, returned_cache, {}),
    "pad_token_id": (3, logits, {}),  # its embedding is zero
    "bos_token_id": (4, generation_defaults, {}),
    "eos_token_id": ([5, 6], generation_defaults, {}),
    "tie_word_embeddings": (False, parameter_shapes, {}),
    "rope_parameters": ({"rope_type": "default", "rope_theta": 500.0}, logits, {}),
    "sliding_rope_parameters": (
        {"rope_type": "default", "rope_theta": 500.0},
        logits,
        {"sliding_window": 3, "sliding_layers": [0]},
    ),
    "rope_frequencies": ([1.0, 0.5, 0.25, 0.0], logits, {}),
    "layers_without_rope": ([0], logits, {}),
    "attention_bias": (True, parameter_shapes, {}),
    "attention_dropout": (0.5, training_logits, {}),
    "attention_out_bias": (True, parameter_shapes, {}),
    "qk_norm": ("across_heads", parameter_shapes, {"qk_norm": True}),
    "float32_norm": (True, bfloat16_logits, {}),
    "float32_rope": (True, bfloat16_logits, {}),
    "sliding_window": (3, logits, {}),
    "sliding_layers": ([0], logits, {"sliding_window": 3}),
    "norm_type": ("layernorm", parameter_shapes, {}),
    "norm_position": ("post", logits, {}),
    "parallel_residual": (True, logits, {}),
    "embedding_multiplier": (2.0, logits, {}),
    "residual_multiplier": (0.5, logits, {}),
    "attention_multiplier": (0.7, logits, {}),
    "logits_scaling": (2.0, logits, {}),
    "mlp_gated": (False, parameter_shapes, {}),
    "mlp_bias": (True, parameter_shapes, {}),
    "classifier_pooling": ("mean", pooled_logits, {}),
    "classifier_dropout": (0.5, classifier_training_logits, {}),
    "lm_head_bias": (True, parameter_shapes, {}),
    "lm_head_transform": (True, masked_logits, {"is_causal": False}),
    "mask_token_id": (3, masked_logits, {"is_causal": False, "token_dropout": True, "mask_token_id": 4}),
    "token_dropout": (True, masked_logits, {"is_causal": False, "mask_token_id": 3}),
}


def test_the_table_of_effects_covers_every_field():
    assert EFFECTS.keys() == NexusConfig.__annotations__.keys()


@pytest.mark.parametrize("field", EFFECTS)
def test_no_field_is_without_effect(field):
    changed, observe, base = EFFECTS[field]
    assert observe(tiny(**base)) == observe(tiny(**base))
    assert observe(tiny(**base)) != observe(tiny(**base | {field: changed}))


@pytest.mark.parametrize("field", EFFECTS)
def test_every_field_survives_saving(field, tmp_path):
    changed, _, base = EFFECTS[field]
    config = tiny(**base | {field: changed})
    config.save_pretrained(tmp_path)
    loaded = NexusConfig.from_pretrained(tmp_path)
    assert getattr(loaded, field) == changed != getattr(tiny(**base), field)
    assert loaded.to_dict() == config.to_dict()


# The saved folder


def test_auto_map_names_a_class_for_every_auto_class(tmp_path):
    tiny().save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    classes = {}
    for auto_class, target in auto_map.items():
        module, name = target.split(".")
        classes[auto_class] = getattr(importlib.import_module(f"nexus_transformers.{module}"), name).__name__
    assert classes == {
        "AutoConfig": "NexusConfig",
        "AutoModel": "NexusModel",
        "AutoModelForCausalLM": "NexusForCausalLM",
        "AutoModelForMaskedLM": "NexusForMaskedLM",
        "AutoModelForSequenceClassification": "NexusForSequenceClassification",
        "AutoModelForTokenClassification": "NexusForTokenClassification",
        "AutoModelForQuestionAnswering": "NexusForQuestionAnswering",
    }


@pytest.mark.parametrize("inner", [4, None])
def test_a_window_of_the_layers_may_be_given_at_load_beside_an_inner_one(inner, tmp_path):
    """The `sliding_window` that `inner_window` implies is not saved."""
    NexusForCausalLM(tiny(inner_window=4)).save_pretrained(tmp_path)
    loaded = NexusForCausalLM.from_pretrained(tmp_path, inner_window=inner, sliding_window=6).config
    assert (loaded.sliding_window, loaded.windowed_layers) == (6, {0, 1})
    loaded = NexusForCausalLM.from_pretrained(tmp_path).config
    assert (loaded.sliding_window, loaded.windowed_layers) == (4, set())
    loaded = NexusForCausalLM.from_pretrained(tmp_path, inner_window=8).config
    assert (loaded.sliding_window, loaded.windowed_layers) == (8, set())


def test_layers_of_no_window_are_refused():
    with pytest.raises(INVALID, match=r"sliding_layers=\[0\]: needs sliding_window"):
        tiny(inner_window=4, sliding_layers=[0])


def test_rotary_settings_given_at_load_have_the_same_defaults(tmp_path):
    NexusForCausalLM(tiny()).save_pretrained(tmp_path)
    rope = {"rope_theta": 1000.0}
    loaded = NexusForCausalLM.from_pretrained(tmp_path, sliding_window=8, sliding_rope_parameters=rope)
    assert (
        loaded.config.sliding_rope_parameters
        == tiny(sliding_window=8, sliding_rope_parameters=rope).sliding_rope_parameters
    )


def test_a_size_that_is_none_is_named_and_not_the_orders():
    with pytest.raises(INVALID, match="num_layers=-1: must be at least 1"):
        tiny(num_layers=-1)
