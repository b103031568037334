"""
Every family: its weights and its config, taken to Nexus, are the same function, and taken back are the same checkpoint.
"""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedModel

import checkpoints
from nexus_transformers import NexusConfig, NexusForCausalLM, modeling_nexus
from nexus_transformers.conversion_scripts.families import (
    FAMILIES,
    METADATA_FIELDS,
    NESTING_FIELDS,
    REFUSED,
    ROPE_FIELDS,
    decoder_fields,
    family_of,
)
from nexus_transformers.conversion_scripts.families.rules import LEFT_BEHIND, rope_of
from nexus_transformers.conversion_scripts.families.wrapped import WRAPPERS, language_model, raw_language_model
from nexus_transformers.errors import ConversionError

# Rounding where the source multiplies in one product or adds in another order, in parts of the largest logit. In
# float32 at most 2**-19 was measured (hidden size 64 to 768, 2 to 4 layers, 1 to 256 tokens). In bfloat16 nothing was,
# since its products are accumulated in float32; but where one does round the other way, it is by 2**-8 of itself.
ROUNDING = {torch.float32: 2**-17, torch.bfloat16: 2**-5}

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [2.0 + 0.7 * i for i in range(6)],
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}

CASES = {  # name -> model_type, changes to its shape in `checkpoints`
    **{model_type: (model_type, {}) for model_type in FAMILIES},
    "llama, tied, llama3 rope, no biases": (
        "llama",
        {"tie_word_embeddings": True, "rope_parameters": LLAMA3, "attention_bias": False, "mlp_bias": False},
    ),
    "llama, linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama, dynamic rope beyond its length": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "max_position_embeddings": 32},
    ),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen2, no window": ("qwen2", {"use_sliding_window": False, "tie_word_embeddings": True}),
    "qwen2, yarn, head_dim": ("qwen2", {"rope_parameters": YARN, "head_dim": 24}),
    "qwen3, other layers windowed": (
        "qwen3",
        {
            "attention_bias": False,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gpt_neox, serial, no biases": ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    "gpt_neox, tied": ("gpt_neox", {"tie_word_embeddings": True, "hidden_act": "gelu_fast"}),
    "phi3, longrope, short": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128, "tie_word_embeddings": True},
    ),
    "phi3, longrope, long": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 48, "sliding_window": None},
    ),
    "olmo2, no biases": ("olmo2", {"attention_bias": False, "rope_parameters": {**YARN, "attention_factor": 1.2}}),
    "cwm, its own windows and rope": ("cwm", {"layer_types": None, "rope_parameters": None}),
    "exaone4, windows": ("exaone4", {"sliding_window": 24, "layer_types": checkpoints.SOME_WINDOWED}),
    "exaone4, a window for no layer": ("exaone4", {"sliding_window": 4096, "layer_types": ["full_attention"] * 3}),
    "smollm3, windows, its own pattern": (
        "smollm3",
        {"no_rope_layers": None, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 24},
    ),
    "granite, tied": ("granite", {"tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False}),
    "olmo3, its own windows and rope, yarn": (
        "olmo3",
        {"layer_types": None, "rope_parameters": {"full_attention": YARN}, "num_hidden_layers": 4},
    ),
    "gemma3_text, its own windows and rope, not tied": (
        "gemma3_text",
        {"layer_types": None, "rope_parameters": None, "num_hidden_layers": 7, "tie_word_embeddings": False},
    ),
    "eurobert, tied, no biases": (
        "eurobert",
        {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "classifier_pooling": "late"},
    ),
    "esm, not tied, no token dropout": ("esm", {"tie_word_embeddings": False, "token_dropout": False}),
    "exaone4, head_dim, llama3 rope": ("exaone4", {"head_dim": 24, "rope_parameters": LLAMA3}),
    "ernie4_5, tied, no biases": ("ernie4_5", {"use_bias": False, "tie_word_embeddings": True}),
    "glm, no biases, whole heads rotated": (
        "glm",
        {"attention_bias": False, "partial_rotary_factor": 1.0, "rope_parameters": YARN},
    ),
    "helium, grouped, no biases": ("helium", {"attention_bias": False, "mlp_bias": False, "num_key_value_heads": 1}),
    "ministral, no window": ("ministral", {"sliding_window": 4096, "layer_types": ["full_attention"] * 3}),
    "stablelm, tied, no biases, whole heads rotated": (
        "stablelm",
        {"tie_word_embeddings": True, "use_qkv_bias": False, "partial_rotary_factor": 1.0, "rope_parameters": YARN},
    ),
    "starcoder2, tied, no biases, no window": (
        "starcoder2",
        {"tie_word_embeddings": True, "use_bias": False, "sliding_window": None},
    ),
}


def make(case: str, dtype: torch.dtype = torch.float32, **changes):
    model_type, options = CASES[case]
    return checkpoints.make(model_type, dtype, **json.loads(json.dumps({**checkpoints.SHAPES[model_type], **options})))


def raw_config(config) -> dict:
    """What config.json would hold."""
    return json.loads(config.to_json_string())


def nexus_config(config, **options) -> NexusConfig:
    family = FAMILIES[config.model_type]
    fields = family.nexus_config(raw_config(config), config)
    return NexusConfig(**fields, inner_output_projection=True, **options)  # heads may be wider than the model


def nexus_config_of(source, **options) -> NexusConfig:
    """With what the weights say."""
    config, weights = nexus_config(source.config, **options), source.state_dict()
    checkpoint = SimpleNamespace(tensors=weights, read=weights.__getitem__)
    for name, read in FAMILIES[source.config.model_type].in_weights.items():
        setattr(config, name, read(checkpoint, config))
    config.dtype = source.dtype
    return config


def split(source, config: NexusConfig) -> dict[str, torch.Tensor]:
    family = FAMILIES[source.config.model_type]
    weights = {}
    for name, tensor in source.state_dict().items():
        rule = family.rule_of(name)
        if rule.targets:
            weights |= dict(zip(rule.targets, rule.split(tensor, config), strict=True))
    return weights


def model_class(source) -> type:
    return getattr(modeling_nexus, FAMILIES[source.config.model_type].architecture)


def convert(source, order=2, **wrong) -> PreTrainedModel:
    """The Nexus model of the same function; `wrong` config fields make it another."""
    config = nexus_config_of(source, attention_order=order, inner_gate=True)
    model = model_class(source)(NexusConfig(**{**config.to_dict(), **wrong})).to(source.dtype).eval()
    missing, unexpected = model.load_state_dict(split(source, config), strict=False)
    assert set(missing) == set(model.gates())
    assert not unexpected
    return model


@torch.no_grad()
def difference(source, model) -> float:
    """Largest difference of logits, in parts of the largest logit."""
    ids = torch.randint(3, checkpoints.VOCAB_SIZE, (2, 64), generator=torch.Generator().manual_seed(0))
    ids[0, ::5] = 5  # the mask of encoders
    expected = source(ids).logits.float()
    return ((model(ids).logits.float() - expected).abs().max() / expected.abs().max()).item()


def function_fields(config) -> dict:
    """All fields of a source config that its function depends on."""
    family = FAMILIES[config.model_type]
    inert = {*METADATA_FIELDS - {"bos_token_id", "eos_token_id", "pad_token_id"}, *family.ignored, *family.required}
    inert |= {"max_window_layers", *ROPE_FIELDS}  # they are in `layer_types` and `rope_parameters`
    if rope_of(config).get("rope_type") != "longrope":
        inert.add("original_max_position_embeddings")
    derived = ("head_dim", config.hidden_size // config.num_attention_heads)
    fields = {name: value for name, value in config.to_dict().items() if name not in inert and (name, value) != derived}
    if "full_attention" in rope_of(config):  # of the kinds of layers that there are
        fields["rope_parameters"] = {kind: config.rope_parameters[kind] for kind in set(config.layer_types)}
    return fields


# The function


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_same_function(case, dtype):
    source = make(case, dtype)
    order = [2, 1, 3, 1, 2, 1, 1][: source.config.num_hidden_layers]
    tolerance = ROUNDING[dtype] if FAMILIES[source.config.model_type].rounds else 0.0
    assert difference(source, convert(source, order)) <= tolerance


def test_those_that_round_otherwise_are_those_that_split_or_reorder_a_tensor():
    rounding = {name for name, family in FAMILIES.items() if family.rounds}
    assert rounding == {"ernie4_5", "esm", "glm", "glm4", "gpt_neox", "helium", "phi3"}


@pytest.mark.parametrize(
    "case, wrong",
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        ("llama, tied, llama3 rope, no biases", {"rope_parameters": {**LLAMA3, "factor": 4.0}}),
        ("mistral", {"sliding_window": 25}),
        ("qwen2", {"sliding_layers": [2]}),
        ("qwen3", {"rms_norm_eps": 1e-2}),
        ("gpt_neox", {"hidden_act": "gelu_new"}),
        ("gpt_neox", {"rope_parameters": {**checkpoints.SHAPE["rope_parameters"], "partial_rotary_factor": 0.25}}),
        ("gpt_neox", {"parallel_residual": False}),
        ("phi3", {"hidden_act": "gelu"}),
        ("phi3", {"sliding_window": None}),
        ("olmo2", {"qk_norm": False}),
        ("olmo2", {"norm_position": "pre"}),
        ("granite", {"embedding_multiplier": 1.0}),
        ("granite", {"residual_multiplier": 1.0}),
        ("granite", {"attention_multiplier": None}),
        ("granite", {"logits_scaling": 4.0}),
        ("smollm3", {"layers_without_rope": None}),
        ("olmo3", {"sliding_rope_parameters": None}),
        ("gemma", {"norm_type": "rmsnorm"}),
        ("exaone4, windows", {"layers_without_rope": None}),
        ("eurobert", {"sliding_window": 24}),
        ("eurobert", {"lm_head_bias": False}),
        ("esm", {"token_dropout": False}),
        ("esm", {"mask_token_id": 6}),
        ("esm", {"lm_head_transform": False}),
        ("esm", {"hidden_act": "silu"}),
    ],
    ids=str,
)
def test_another_config_is_another_function(case, wrong):
    source = make(case)
    config = nexus_config(source.config)
    model = model_class(source)(NexusConfig(**{**config.to_dict(), **wrong})).eval()
    model.load_state_dict(split(source, config), strict=False)
    assert difference(source, model) > 1e-3


@pytest.mark.parametrize("switch", ["float32_norm", "float32_rope"])
def test_olmo2_rounds_once(switch):
    source = make("olmo2", torch.bfloat16)
    assert difference(source, convert(source, **{switch: False})) > 1e-3


@pytest.mark.parametrize("case", ["gpt_neox", "phi3", "qwen2"])
def test_swapped_queries_and_keys_are_another_function(case):
    source = make(case)
    model = convert(source)
    for name, parameter in model.state_dict().items():
        if "q_proj" in name:
            key = model.state_dict()[name.replace("q_proj", "k_proj")]
            rows = min(len(parameter), len(key))
            parameter[:rows], key[:rows] = key[:rows].clone(), parameter[:rows].clone()
    assert difference(source, model) > 1e-2


def test_longrope_generates_across_its_limit_as_phi3_does(monkeypatch):
    """Beyond `original_max_position_embeddings` every key must be rotated anew as Phi-3 does without a cache."""
    source = make("phi3, longrope, long")
    model = convert(source, order=[2, 1, 2])
    ids = torch.randint(3, checkpoints.VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "output_logits": True}
    settings |= {"attention_mask": mask, "return_dict_in_generate": True}
    expected, actual = source.generate(ids, use_cache=False, **settings), model.generate(ids, **settings)
    assert torch.equal(expected.sequences, actual.sequences)
    torch.testing.assert_close(torch.stack(actual.logits), torch.stack(expected.logits), rtol=0, atol=2e-4)
    embedded = model.generate(inputs_embeds=model.get_input_embeddings()(ids), **settings)
    assert embedded.sequences.shape == (2, 20)
    with monkeypatch.context() as keeps_its_cache:
        keeps_its_cache.delattr(NexusForCausalLM, "prepare_inputs_for_generation")
        stale = model.generate(ids, **settings)
    assert (torch.stack(stale.logits) - torch.stack(expected.logits)).abs().max() > 0.01


# The way back


@pytest.mark.parametrize("case", CASES)
def test_weights_and_config_come_back(case):
    source = make(case, torch.bfloat16)
    family = FAMILIES[source.config.model_type]
    config = nexus_config_of(source, attention_order=2, inner_gate=True)
    weights = split(source, config)
    returned = family.source_config(config)
    assert type(returned) is type(source.config)
    assert function_fields(returned) == function_fields(source.config)
    for name, tensor in source.state_dict().items():
        rule = family.rule_of(name)
        if rule == LEFT_BEHIND:
            continue
        assert torch.equal(rule.join([weights[target] for target in rule.targets], config), tensor), name


@pytest.mark.parametrize("case", CASES)
def test_every_rule_splits_and_joins_meta_tensors_to_the_shapes_of_the_model(case):
    source = make(case)
    family = FAMILIES[source.config.model_type]
    config = nexus_config(source.config, attention_order=1)
    expected = {name: tensor.shape for name, tensor in model_class(source)(config).state_dict().items()}
    actual = {}
    for name, tensor in source.state_dict().items():
        rule = family.rule_of(name)
        if not rule.targets:
            continue
        parts = rule.split(tensor.to("meta"), config)
        actual |= {target: part.shape for target, part in zip(rule.targets, parts, strict=True)}
        joined = rule.join(parts, config)
        assert joined.is_meta
        assert joined.shape == tensor.shape
    assert actual == expected


def test_saved_as_gives_the_names_that_files_have(tmp_path):
    for model_type in FAMILIES:
        source = make(model_type)
        source.save_pretrained(tmp_path / model_type)
        with safe_open(tmp_path / model_type / "model.safetensors", "pt") as file:
            in_file = set(file.keys())
        saved_as = FAMILIES[model_type].saved_as
        named = {checkpoints.new_name(name) for name in in_file}
        tied = {"lm_head.decoder.weight"} if model_type == "esm" else set()
        assert named == {saved_as.get(name, name) for name in source.state_dict()} - tied
        for name in in_file:
            FAMILIES[model_type].rule_of(name)


@pytest.mark.parametrize(
    "model_type, changes, named",
    [
        ("llama", {"qk_norm": True}, "qk_norm"),
        ("llama", {"is_causal": False}, "is_causal"),
        ("llama", {"lm_head_bias": True}, "lm_head_bias"),
        ("eurobert", {"is_causal": False, "mask_token_id": 3, "token_dropout": True}, "token_dropout"),
        ("eurobert", {"is_causal": False, "rope_frequencies": [1.0] * 8}, "rope_frequencies"),
        ("eurobert", {}, "is_causal"),
        ("esm", {"is_causal": False}, "norm_type"),
        ("llama", {"parallel_residual": True}, "parallel_residual"),
        ("llama", {"norm_type": "layernorm"}, "norm_type"),
        ("llama", {"norm_position": "post"}, "norm_position"),
        ("llama", {"mlp_gated": False}, "mlp_gated"),
        ("llama", {"float32_norm": True}, "float32_norm"),
        ("llama", {"float32_rope": True}, "float32_rope"),
        ("llama", {"embedding_multiplier": 2.0}, "embedding_multiplier"),
        ("llama", {"attention_multiplier": 0.1}, "attention_multiplier"),
        ("qwen3", {"qk_norm": True, "layers_without_rope": [0]}, "layers_without_rope"),
        ("gemma", {"norm_type": "zero_centered_rmsnorm"}, "embedding_multiplier=1.0"),
        (
            "mistral",
            {"sliding_window": 8, "sliding_rope_parameters": {"rope_theta": 5.0}},
            "sliding_rope_parameters",
        ),
        ("llama", {"sliding_window": 8}, "sliding_window"),
        ("llama", {"attention_bias": True, "attention_out_bias": False}, "attention_out_bias"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"num_attention_heads": 9, "num_key_value_heads": 3}, "multiple"),
        ("mistral", {"sliding_window": 8, "sliding_layers": [0]}, "sliding_layers"),
        ("mistral", {"mlp_bias": True}, "mlp_bias"),
        ("qwen2", {}, "attention_bias"),
        ("qwen3", {"qk_norm": "across_heads"}, "qk_norm"),
        ("olmo2", {"qk_norm": True}, "norm_position='pre' .*, qk_norm=True"),
        ("gpt_neox", {"norm_type": "layernorm", "mlp_gated": False, "mlp_bias": True}, "num_key_value_heads"),
        ("phi3", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}}, "longrope"),
        ("phi3", {"rope_parameters": YARN}, "rope_parameters"),
        ("arcee", {}, "mlp_gated"),
        (
            "exaone4",
            {"qk_norm": True, "norm_position": "post", "sliding_window": 8, "sliding_layers": [0]},
            "layers_without_rope",
        ),
        ("ministral", {"attention_bias": True}, "attention_bias"),
        ("stablelm", {"norm_type": "layernorm", "parallel_residual": True}, "parallel_residual"),
        (
            "starcoder2",
            {"norm_type": "layernorm", "mlp_gated": False, "attention_bias": True, "mlp_bias": False},
            "mlp_bias",
        ),
    ],
    ids=str,
)
def test_what_a_family_cannot_express_is_refused_by_name(model_type, changes, named):
    shape = {"hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = NexusConfig(**{**shape, **changes}, attention_order=1)
    with pytest.raises(ConversionError, match=named) as refusal:
        FAMILIES[model_type].source_config(config)
    assert "\n" not in str(refusal.value)


def test_a_window_in_every_layer_is_the_same_with_and_without_a_list():
    config = NexusConfig(num_layers=2, sliding_window=8, sliding_layers=[1, 0])
    assert FAMILIES["mistral"].source_config(config).sliding_window == 8


def test_no_field_of_the_decoder_is_forgotten():
    assert NESTING_FIELDS < NexusConfig.__annotations__.keys()
    assert decoder_fields(NexusConfig()).keys() == NexusConfig.__annotations__.keys() - NESTING_FIELDS


# Refusals


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_unknown_field_is_refused(model_type):
    config = AutoConfig.for_model(model_type, **checkpoints.SHAPES[model_type])
    with pytest.raises(ConversionError, match="clip_qkv=8"):
        FAMILIES[model_type].nexus_config({**raw_config(config), "clip_qkv": 8}, config)


@pytest.mark.parametrize("model_type, name", [("llama", "rope_interleaved"), ("gemma", "use_bidirectional_attention")])
def test_null_and_false_are_both_off(model_type, name):
    config = AutoConfig.for_model(model_type, **checkpoints.SHAPES[model_type])
    read = [FAMILIES[model_type].nexus_config({**raw_config(config), name: off}, config) for off in (None, False)]
    assert read[0] == read[1]
    with pytest.raises(ConversionError, match=f"{name}=0"):
        FAMILIES[model_type].nexus_config({**raw_config(config), name: 0.5}, config)


@pytest.mark.parametrize(
    "model_type, changes, named",
    [
        ("llama", {"rope_interleaved": True}, "rope_interleaved"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"rotary_pct": 0.5}, "rotary_pct"),
        ("llama", {"attention_multiplier": 0.1}, "attention_multiplier"),
        ("llama", {"sliding_window": 8}, "sliding_window"),
        ("llama", {"rope_scaling": {"rope_type": "spiral"}}, "spiral"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("qwen2", {"use_mrope": True}, "use_mrope"),
        ("qwen3", {"is_causal": False}, "is_causal"),
        ("gpt_neox", {"hidden_dropout": 0.1}, "hidden_dropout"),
        ("gpt_neox", {"rope_theta": 5.0}, "rope_theta"),
        ("gpt_neox", {"partial_rotary_factor": 1.0, "rotary_pct": 0.25}, "partial_rotary_factor"),
        ("gpt_neox", {"head_dim": 8}, "head_dim"),
        ("phi3", {"resid_pdrop": 0.1}, "resid_pdrop"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias"),
        ("esm", {"position_embedding_type": "absolute"}, "position_embedding_type='absolute' .* learned positions"),
        ("esm", {"emb_layer_norm_before": True}, "emb_layer_norm_before"),
        ("esm", {"is_decoder": True}, "is_decoder"),
        ("esm", {"is_folding_model": True}, "is_folding_model"),
        ("gemma3_text", {"rope_parameters": YARN}, "rope_parameters has rope_type, .* say it for each kind"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
        ("starcoder2", {"mlp_type": "gated"}, "mlp_type"),
    ],
    ids=str,
)
def test_a_value_that_nexus_cannot_reproduce_is_refused(model_type, changes, named):
    shape = {name: value for name, value in checkpoints.SHAPES[model_type].items() if name != "rope_parameters"}
    raw = {name: value for name, value in {"model_type": model_type, **shape, **changes}.items() if value is not ...}
    config = AutoConfig.for_model(**deepcopy(raw))  # it adds to the RoPE parameters it is given
    with pytest.raises(ConversionError, match=named) as refusal:
        FAMILIES[model_type].nexus_config(raw, config)
    assert "\n" not in str(refusal.value)


def test_an_unknown_activation_is_refused():
    config = AutoConfig.for_model("llama", **{**checkpoints.SHAPE, "hidden_act": "swish2"})
    with pytest.raises(StrictDataclassError, match="hidden_act='swish2'"):
        nexus_config(config)


@pytest.mark.parametrize("model_type", REFUSED)
def test_architectures_that_cannot_be_converted_say_why(model_type):
    AutoConfig.for_model(model_type)  # the name is one that Transformers knows
    with pytest.raises(ConversionError, match=f"model_type='{model_type}' cannot be converted: ") as refusal:
        family_of(model_type, "model_type=")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("model_type", [None, "t5", ["llama"], 3])
def test_other_architectures_are_refused_with_a_list_of_the_known(model_type):
    with pytest.raises(ConversionError, match=f"Known: {', '.join(sorted(FAMILIES))}\\."):
        family_of(model_type, "model_type=")


@pytest.mark.parametrize(
    "model_type, name",
    [
        ("llama", "model.layers.0.self_attn.q_proj.lora_A.weight"),
        ("llama", "model.layers.*.self_attn.q_proj.weight"),
        ("llama", "model.layers.x.self_attn.q_proj.weight"),
        ("llama", "layers.0.self_attn.q_proj.weight"),
        ("llama", "xmodel.norm.weight"),
        ("mistral", "model.layers.0.self_attn.q_proj.bias"),
        ("olmo2", "model.layers.0.input_layernorm.weight"),
        ("phi3", "model.layers.0.self_attn.q_proj.weight"),
        ("gpt_neox", "model.layers.0.self_attn.q_proj.weight"),
    ],
)
def test_a_tensor_that_no_rule_names_is_refused(model_type, name):
    with pytest.raises(ConversionError, match="no rule for model_type"):
        FAMILIES[model_type].rule_of(name)


@pytest.mark.parametrize(
    "model_type, name",
    [
        ("llama", "model.layers.11.self_attn.rotary_emb.inv_freq"),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
        ("esm", "esm.encoder.layer.11.attention.self.rotary_embeddings.inv_freq"),
        ("esm", "esm.embeddings.position_ids"),
    ],
)
def test_buffers_of_old_checkpoints_are_left_behind(model_type, name):
    assert FAMILIES[model_type].rule_of(name).targets == ()


def test_layer_numbers_are_carried_over():
    rule = FAMILIES["gpt_neox"].rule_of("gpt_neox.layers.31.attention.query_key_value.bias")
    assert rule.targets == tuple(f"model.layers.31.self_attn.{name}_proj.bias" for name in ("q", "k", "v"))


# Published checkpoints. hub_configs.json has their config.json as they are on the Hub, but for the factors of LongRoPE,
# which are made up. The number of parameters is the published one.


HUB_CONFIGS = json.loads(Path(__file__).with_name("hub_configs.json").read_text())
PUBLISHED = {  # parameters, and what is easily lost on the way
    "EleutherAI/pythia-160m": (162_322_944, {"parallel_residual": True, "hidden_act": "gelu"}),
    "EleutherAI/pythia-1b": (1_011_781_632, {"head_dim": 256}),
    "EleutherAI/gpt-neox-20b": (20_554_567_680, {"parallel_residual": True, "hidden_act": "gelu_fast"}),
    "togethercomputer/RedPajama-INCITE-Base-3B-v1": (2_775_864_320, {"parallel_residual": False}),
    "mistralai/Mistral-7B-v0.1": (7_241_732_096, {"sliding_window": 4096}),
    "mistralai/Mistral-7B-v0.3": (7_248_023_552, {"sliding_window": None}),
    "mistralai/Mistral-Nemo-Base-2407": (12_247_782_400, {"head_dim": 128}),
    "Qwen/Qwen2.5-0.5B": (494_032_768, {"sliding_window": None, "attention_bias": True}),
    "Qwen/Qwen2.5-1.5B": (1_543_714_304, {"tie_word_embeddings": True, "attention_out_bias": False}),
    "Qwen/Qwen2.5-7B-Instruct": (7_615_616_512, {"tie_word_embeddings": False}),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (1_777_088_000, {"sliding_window": None}),
    "Qwen/Qwen3-0.6B": (596_049_920, {"head_dim": 128, "qk_norm": True}),
    "Qwen/Qwen3-8B": (8_190_735_360, {"attention_bias": False}),
    "allenai/OLMo-2-0425-1B": (1_484_916_736, {"norm_position": "post", "qk_norm": "across_heads"}),
    "allenai/OLMo-2-1124-7B": (7_298_617_344, {"bos_token_id": None, "pad_token_id": 100277}),
    "meta-llama/Llama-2-7b-hf": (6_738_415_616, {"num_key_value_heads": 32}),
    "huggyllama/llama-7b": (6_738_415_616, {"num_key_value_heads": 32, "pad_token_id": 0}),
    "deepseek-ai/deepseek-coder-1.3b-base": (1_346_471_936, {}),
    "meta-llama/Llama-3.2-1B": (1_235_814_400, {"tie_word_embeddings": True, "head_dim": 64}),
    "meta-llama/Llama-3.1-8B-Instruct": (8_030_261_248, {"eos_token_id": [128001, 128008, 128009]}),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (1_100_048_384, {"num_key_value_heads": 4}),
    "HuggingFaceTB/SmolLM2-135M": (134_515_008, {"num_key_value_heads": 3}),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (1_711_376_384, {"pad_token_id": 2}),
    "microsoft/Phi-3-mini-4k-instruct": (3_821_079_552, {"sliding_window": 2047}),
    "microsoft/Phi-3-mini-128k-instruct": (3_821_079_552, {"sliding_window": 262144}),
    "microsoft/Phi-3-medium-4k-instruct": (13_960_238_080, {"num_key_value_heads": 10}),
    "microsoft/Phi-4-mini-instruct": (3_836_021_760, {"tie_word_embeddings": True}),
    "microsoft/phi-4": (14_659_507_200, {"sliding_window": None}),
    "bigcode/starcoder2-3b": (3_030_371_328, {"sliding_window": 4096, "tie_word_embeddings": True, "mlp_bias": True}),
    "bigcode/starcoder2-15b": (15_957_889_024, {"tie_word_embeddings": False, "hidden_act": "gelu_pytorch_tanh"}),
    "stabilityai/stablelm-2-1_6b": (1_644_515_328, {"attention_bias": True, "attention_out_bias": False}),
    "stabilityai/stablelm-3b-4e1t": (2_795_443_200, {"attention_bias": False, "norm_type": "layernorm"}),
    "ByteDance-Seed/Seed-OSS-36B-Base": (36_151_104_512, {"attention_bias": True, "attention_out_bias": False}),
    "kyutai/helium-1-preview-2b": (2_172_643_840, {"rms_norm_eps": 1e-8, "head_dim": 128}),
    "baidu/ERNIE-4.5-0.3B-PT": (360_748_032, {"head_dim": 128, "attention_bias": False}),
    "THUDM/glm-4-9b-chat-hf": (9_399_951_360, {"attention_bias": True, "attention_out_bias": False}),
    # Of the language model alone: as Qwen3-4B, Qwen2.5-7B and Mistral-Small-24B-2501
    "Qwen/Qwen3-VL-4B-Instruct": (4_022_468_096, {"tie_word_embeddings": True, "qk_norm": True}),
    "Qwen/Qwen2.5-VL-7B-Instruct": (7_615_616_512, {"attention_out_bias": False, "sliding_window": None}),
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": (23_572_403_200, {"head_dim": 128, "sliding_window": None}),
    "HuggingFaceTB/SmolLM3-3B": (3_075_098_624, {"layers_without_rope": list(range(3, 36, 4))}),
    "google/gemma-3-1b-it": (999_885_952, {"norm_position": "both", "attention_multiplier": 0.0625}),
    "google/gemma-3-12b-it": (11_766_034_176, {"sliding_window": 1024, "embedding_multiplier": 3840**0.5}),
    "ibm-granite/granite-3.1-2b-instruct": (2_533_531_648, {"attention_multiplier": 0.015625}),
    "LGAI-EXAONE/EXAONE-4.0-1.2B": (1_279_391_488, {"sliding_window": None, "norm_position": "post"}),
}
ROPE = {  # where it is more than a theta: what must be in `rope_parameters`
    "EleutherAI/pythia-160m": {"partial_rotary_factor": 0.25},
    "togethercomputer/RedPajama-INCITE-Base-3B-v1": {"partial_rotary_factor": 1.0},
    "deepseek-ai/deepseek-coder-1.3b-base": {"rope_type": "linear", "factor": 4.0},
    "meta-llama/Llama-3.2-1B": {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192},
    "meta-llama/Llama-3.1-8B-Instruct": {"rope_type": "llama3", "factor": 8.0},
    "microsoft/Phi-3-mini-128k-instruct": {"rope_type": "longrope", "original_max_position_embeddings": 4096},
    "microsoft/Phi-4-mini-instruct": {"rope_type": "longrope", "partial_rotary_factor": 0.75},
    "stabilityai/stablelm-2-1_6b": {"partial_rotary_factor": 0.25},
    "THUDM/glm-4-9b-chat-hf": {"partial_rotary_factor": 0.5},
    "google/gemma-3-1b-it": {"rope_theta": 1_000_000},
    "google/gemma-3-12b-it": {"rope_theta": 1_000_000.0, "rope_type": "linear", "factor": 8.0},
    "LGAI-EXAONE/EXAONE-4.0-1.2B": {"rope_type": "llama3", "factor": 16.0},
}


@pytest.mark.parametrize("name", HUB_CONFIGS)
def test_the_config_of_a_published_checkpoint(name):
    raw = HUB_CONFIGS[name]
    config, text = AutoConfig.for_model(**raw), raw.get("text_config", raw)
    if raw["model_type"] in WRAPPERS:
        tied = raw.get("tie_word_embeddings", raw["model_type"] == "gemma3")
        raw = raw_language_model(raw)
        config = language_model(config, raw["model_type"], tied)
    family = FAMILIES[raw["model_type"]]
    nexus = NexusConfig(**family.nexus_config(raw, config), attention_order=1)
    parameters, facts = PUBLISHED[name]
    with torch.device("meta"):
        model = NexusForCausalLM(nexus)
    model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert {field: getattr(nexus, field) for field in facts} == facts
    theta = text.get("rope_theta") or text.get("rotary_emb_base") or 10000.0
    assert {"rope_type": "default", "rope_theta": theta, **ROPE.get(name, {})}.items() <= nexus.rope_parameters.items()
    assert function_fields(family.source_config(nexus)) == function_fields(config)
