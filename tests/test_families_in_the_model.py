"""Order 1, and closed gates, are Transformers' own Llama, Mistral, Qwen2, Gemma 3 and others, weights equal."""

import pytest
import torch
import transformers

from nexus_transformers import NexusConfig, NexusForCausalLM

SHAPE = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-6}  # head_dim is not hidden_size / heads
LONG = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 16}
FACTORS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.6, "logits_scaling": 2.0}
SLIDING = {"rope_type": "default", "rope_theta": 100.0}
TWO_ROPES = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {"full_attention": LONG, "sliding_attention": SLIDING},
}
SAME_ROPES = {"rope_parameters": LONG, "sliding_rope_parameters": SLIDING, "sliding_layers": [0, 2]}

# name -> config, its own options, the Nexus options that say the same, tolerance where addition is in another order
FAMILIES = {
    "llama": (
        "Llama",
        {**GROUPED, "attention_bias": True, "mlp_bias": True},
        {"attention_bias": True, "mlp_bias": True},
        0,
    ),
    "llama, yarn": ("Llama", {**GROUPED, "rope_parameters": LONG}, {"rope_parameters": LONG}, 0),
    "mistral, window": ("Mistral", {**GROUPED, "sliding_window": 5}, {"sliding_window": 5}, 0),
    "qwen2": (
        "Qwen2",
        {"num_key_value_heads": 2, "rms_norm_eps": 1e-6},
        {"head_dim": 8, "attention_bias": True, "attention_out_bias": False},
        0,
    ),
    "qwen2, window in the last layer": (
        "Qwen2",
        {
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 2,
        },
        {
            "head_dim": 8,
            "attention_bias": True,
            "attention_out_bias": False,
            "sliding_window": 4,
            "sliding_layers": [2],
        },
        0,
    ),
    "qwen3": ("Qwen3", GROUPED, {"qk_norm": True}, 0),
    "olmo2": (
        "Olmo2",
        {"num_key_value_heads": 2, "rms_norm_eps": 1e-6},
        {"head_dim": 8, "qk_norm": "across_heads", "norm_position": "post", "float32_norm": True, "float32_rope": True},
        0,
    ),
    "granite": (
        "Granite",
        {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, **FACTORS},
        {"head_dim": 8},
        0,
    ),
    "smollm3": (
        "SmolLM3",
        {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "no_rope_layers": [1, 0, 1], "rope_parameters": LONG}
        | {"use_sliding_window": True, "sliding_window": 5},  # in the layer without positions
        {"head_dim": 8, "layers_without_rope": [1], "sliding_layers": [1]},
        0,
    ),
    "olmo3": (
        "Olmo3",
        {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "sliding_window": 5, **TWO_ROPES},
        {"head_dim": 8, "qk_norm": "across_heads", "norm_position": "post", "float32_norm": True, "float32_rope": True}
        | SAME_ROPES,
        0,
    ),
    "gemma3": (
        "Gemma3Text",
        {**GROUPED, "sliding_window": 5, "query_pre_attn_scalar": 20, **TWO_ROPES},
        {"qk_norm": True, "norm_type": "zero_centered_rmsnorm", "norm_position": "both"}
        | {"hidden_act": "gelu_pytorch_tanh", "embedding_multiplier": 32**0.5, "attention_multiplier": 20**-0.5}
        | SAME_ROPES,
        0,
    ),
    "gpt-neox": (
        "GPTNeoX",
        {"rotary_pct": 0.25, "hidden_size": 64, "layer_norm_eps": 1e-6, "use_parallel_residual": True},
        {
            "hidden_size": 64,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
            "norm_type": "layernorm",
            "hidden_act": "gelu",
            "mlp_gated": False,
            "parallel_residual": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
        2e-5,  # the source multiplies q, k and v in one product; logits are of size 10
    ),
}
FAMILIES["gpt-neox, serial"] = (
    "GPTNeoX",
    {**FAMILIES["gpt-neox"][1], "use_parallel_residual": False},
    {**FAMILIES["gpt-neox"][2], "parallel_residual": False},
    2e-5,
)


SELF = {"inner_attention": "self", "attention_order": [1, 3, 2]}
NESTINGS = {
    "shared": {"attention_order": [1, 3, 2]},
    "separate": {"inner_attention": "separate", "attention_order": [1, 2, 2], "refine_value": True},
    "self": SELF,
}
ORDER_1 = {"attention_order": 1}


def nexus_weights(source) -> dict[str, torch.Tensor]:
    """The source's state dict under Nexus' names: only GPT-NeoX has other ones, and fused projections."""
    if source.config.model_type != "gpt_neox":
        return source.state_dict()
    names = {
        "gpt_neox.embed_in": "model.embed_tokens",
        "gpt_neox.final_layer_norm": "model.norm",
        "gpt_neox.layers": "model.layers",
        "attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    }
    weights = {}
    for name, tensor in source.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        if "attention.query_key_value" in name:
            heads = tensor.view(source.config.num_attention_heads, 3, -1, *tensor.shape[1:])
            for number, projection in enumerate(("q_proj", "k_proj", "v_proj")):
                split = name.replace("attention.query_key_value", f"self_attn.{projection}")
                weights[split] = heads[:, number].flatten(0, 1)
        else:
            weights[name] = tensor
    return weights


def pair(family, nesting, implementation="sdpa", tied=False):
    name, source_options, options, tolerance = FAMILIES[family]
    config_class = getattr(transformers, f"{name}Config")
    source_config = config_class(num_hidden_layers=3, tie_word_embeddings=tied, **{**SHAPE, **source_options})
    source_config._attn_implementation = implementation
    source = transformers.AutoModelForCausalLM.from_config(source_config).eval()
    for parameter_name, parameter in source.named_parameters():
        if "norm" in parameter_name or parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("norm.weight" in parameter_name), std=0.3)
    shared = {**SHAPE, **{key: value for key, value in source_options.items() if key in NexusConfig.__annotations__}}
    shared["rms_norm_eps"] = 1e-6
    options = shared | options | nesting
    wide = options["head_dim"] * options["num_attention_heads"] != options["hidden_size"]
    inner_output = wide and nesting not in (ORDER_1, SELF)
    config = NexusConfig(
        num_layers=3, inner_gate=True, inner_output_projection=inner_output, tie_word_embeddings=tied, **options
    )
    config._attn_implementation = implementation
    model = NexusForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(nexus_weights(source), strict=False)
    assert set(missing) == {name for name in model.state_dict() if ".self_attn.inner_" in name}, "gates, inner layers"
    assert not unexpected
    return source, model, tolerance


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("nesting", [ORDER_1, *NESTINGS.values()], ids=["order 1", *NESTINGS])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_with_and_without_padding_and_cache(family, nesting, implementation):
    source, model, tolerance = pair(family, nesting, implementation)
    ids = torch.randint(1, 80, (2, 24))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    for arguments in ({}, {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}):
        difference = (model(ids, **arguments).logits - source(ids, **arguments).logits).abs()
        assert difference[mask.bool()].max() <= tolerance
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": mask, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **settings), source.generate(ids, **settings))


@pytest.mark.parametrize("nesting", NESTINGS.values(), ids=NESTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_open_gate_differs(family, nesting):
    source, model, tolerance = pair(family, nesting)
    ids = torch.randint(1, 80, (1, 24))
    with torch.no_grad():
        list(model.gates().values())[-1].fill_(0.5)
    assert (model(ids).logits - source(ids).logits).abs().max() > 10 * max(tolerance, 1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_tied_weights(family):
    source, model, _ = pair(family, NESTINGS["shared"], tied=True)
    ids = torch.randint(1, 80, (1, 24))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model(ids).logits, source(ids).logits)


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("gpt-neox", {"hidden_act": "gelu_new"}),
        ("gpt-neox", {"parallel_residual": False}),
        ("gpt-neox", {"norm_type": "rmsnorm"}),
        (
            "gpt-neox",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        ),
        ("qwen3", {"qk_norm": False}),
        ("olmo2", {"qk_norm": False}),
        ("olmo2", {"norm_position": "pre"}),
        ("mistral, window", {"sliding_window": 6}),
        ("qwen2, window in the last layer", {"sliding_layers": [1]}),
        ("llama, yarn", {"rope_parameters": {**LONG, "factor": 2.0}}),
        ("granite", {"embedding_multiplier": 1.0}),
        ("granite", {"residual_multiplier": 1.0}),
        ("granite", {"attention_multiplier": None}),
        ("granite", {"logits_scaling": 1.0}),
        ("smollm3", {"layers_without_rope": [0]}),
        ("olmo3", {"sliding_rope_parameters": None}),
        ("gemma3", {"norm_type": "rmsnorm"}),
        ("gemma3", {"attention_multiplier": None}),
    ],
    ids=str,
)
def test_a_wrong_switch_is_seen(family, wrong):
    """The comparison above would not pass if the switch did nothing."""
    source, model, tolerance = pair(family, ORDER_1)
    config = NexusConfig(**{**model.config.to_dict(), **wrong})
    changed = NexusForCausalLM(config).eval()
    changed.load_state_dict(model.state_dict(), strict=False)
    ids = torch.randint(1, 80, (1, 24))
    assert (changed(ids).logits - source(ids).logits).abs().max() > max(10 * tolerance, 1e-4)
