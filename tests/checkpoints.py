"""Tiny real checkpoints, made by Transformers' own classes, with a real tokenizer: what the converter tests convert."""

from copy import deepcopy
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPE = {  # of a Llama
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,  # not hidden_size / num_attention_heads
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large enough for attention to be far from uniform
    "rope_parameters": {"rope_type": "default", "rope_theta": 123456.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
_NO_HEAD_DIM = {**{name: value for name, value in SHAPE.items() if name != "head_dim"}, "hidden_size": 64}
_NO_GROUPS = {name: value for name, value in _NO_HEAD_DIM.items() if name != "num_key_value_heads"}
_WINDOW = {"sliding_window": 24}
_LAST_LAYERS_WINDOWED = {"use_sliding_window": True, "max_window_layers": 1, **_WINDOW}
SOME_WINDOWED = ["sliding_attention", "full_attention", "sliding_attention"]
_TWO_ROPES = {
    "full_attention": SHAPE["rope_parameters"],
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
}
_SOME_WINDOWED_WITH_ROPE = {**_WINDOW, "layer_types": SOME_WINDOWED, "rope_parameters": _TWO_ROPES}
_HALF_ROTARY = {"rope_parameters": {**SHAPE["rope_parameters"], "partial_rotary_factor": 0.5}}
SHAPES = {  # model_type -> a shape that uses what sets the family apart; biases, where they are optional, are on
    "llama": {**SHAPE, "attention_bias": True, "mlp_bias": True},
    "mistral": {**SHAPE, **_WINDOW},
    "qwen2": {**_NO_HEAD_DIM, **_LAST_LAYERS_WINDOWED},
    "qwen3": {**SHAPE, **_LAST_LAYERS_WINDOWED, "attention_bias": True},
    "gpt_neox": {**_NO_GROUPS, **_HALF_ROTARY, "hidden_act": "gelu"},
    "phi3": {**_NO_HEAD_DIM, **_HALF_ROTARY, **_WINDOW},
    "olmo2": {**_NO_HEAD_DIM, "attention_bias": True},
    "arcee": {**SHAPE, "attention_bias": True, "mlp_bias": True},
    "cwm": {**SHAPE, **_WINDOW, "layer_types": SOME_WINDOWED, "mlp_bias": True},
    "exaone4": {**_NO_HEAD_DIM, "sliding_window": None, "layer_types": ["full_attention"] * 3},
    "ernie4_5": {**SHAPE, "use_bias": True, "tie_word_embeddings": False},
    "glm": {**SHAPE, **_HALF_ROTARY, "partial_rotary_factor": 0.5, "attention_bias": True},
    "helium": {**SHAPE, "head_dim": 12, "attention_bias": True, "mlp_bias": True},
    "iquestcoder": {**SHAPE, "attention_bias": True, "mlp_bias": True},
    "jais2": SHAPE,
    "ministral": {**SHAPE, **_WINDOW, "layer_types": SOME_WINDOWED},
    "seed_oss": {**SHAPE, "attention_out_bias": True, "mlp_bias": True},
    "stablelm": {**_NO_HEAD_DIM, **_HALF_ROTARY, "partial_rotary_factor": 0.5, "use_qkv_bias": True},
    "eurobert": {**SHAPE, "attention_bias": True, "mlp_bias": True, "mask_token_id": 5, "classifier_pooling": "bos"},
    "esm": {
        **{name: value for name, value in _NO_GROUPS.items() if name != "rope_parameters"},
        **{"position_embedding_type": "rotary", "rope_theta": 123456.0, "layer_norm_eps": 1e-5, "mask_token_id": 5},
        **{"token_dropout": True, "emb_layer_norm_before": False, "hidden_dropout_prob": 0.0},
    },
    "gemma": {**SHAPE, "attention_bias": True, "tie_word_embeddings": False},
    "gemma3_text": {
        **SHAPE,
        **_SOME_WINDOWED_WITH_ROPE,
        **{"query_pre_attn_scalar": 24, "attention_bias": True, "tie_word_embeddings": False},
    },
    "glm4": {**SHAPE, **_HALF_ROTARY, "partial_rotary_factor": 0.5, "attention_bias": True},
    "granite": {
        **_NO_HEAD_DIM,
        **{"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0},
        **{"attention_multiplier": 0.1, "attention_bias": True, "mlp_bias": True},
    },
    "olmo3": {**_NO_HEAD_DIM, **_SOME_WINDOWED_WITH_ROPE, "attention_bias": True},
    "smollm3": {
        **_NO_HEAD_DIM,
        **{"no_rope_layers": [1, 0, 1], "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    },
    "starcoder2": {**_NO_HEAD_DIM, **_WINDOW, "tie_word_embeddings": False},
}
ENCODERS = ("esm", "eurobert")
_PIXTRAL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
_EYES = {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "patch_size": 4}
_SECTIONS = {**SHAPE["rope_parameters"], "mrope_section": [3, 3, 2]}
WRAPPED = {  # models of images too
    "gemma3": {
        "text_config": {**SHAPE, **_SOME_WINDOWED_WITH_ROPE, "query_pre_attn_scalar": 24},
        "vision_config": {**_PIXTRAL, "image_size": 16, "patch_size": 4, "vision_use_head": False},
        "mm_tokens_per_image": 4,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", **SHAPE, **_WINDOW},
        "vision_config": {"model_type": "pixtral", **_PIXTRAL, "image_size": 16, "patch_size": 4},
    },
    "qwen2_5_vl": {
        "text_config": {**_NO_HEAD_DIM, "rope_parameters": _SECTIONS},
        "vision_config": {**_EYES, "out_hidden_size": 64, "fullatt_block_indexes": [0]},
    },
    "qwen3_vl": {
        "text_config": {**SHAPE, "rope_parameters": {**_SECTIONS, "mrope_interleaved": True}},
        "vision_config": {**_EYES, "out_hidden_size": 48, "deepstack_visual_indexes": [0]},
    },
}
SHAPES = {name: shape for name, shape in SHAPES.items() if name in CONFIG_MAPPING}  # that this Transformers has


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 512 tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([topics["class"], topics["exceptions"]], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def make(model_type: str, dtype: torch.dtype = torch.float32, **shape) -> PreTrainedModel:
    """A random model of Transformers' own class for this architecture."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **deepcopy(shape))  # a config adds to the RoPE parameters it is given
    loader = AutoModelForImageTextToText if model_type in WRAPPED else auto_class(model_type)
    model = loader.from_config(config).to(dtype).eval()
    for name, parameter in model.named_parameters():
        is_norm = name.lower().endswith(("norm.weight", "norm_after.weight"))
        if is_norm or name.endswith("bias"):  # as trained models have them, not all 1 and 0
            torch.nn.init.normal_(parameter, mean=float(is_norm), std=0.2)
    return model


OLD_NAMES = {
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
    "encoder.layer.*.attention.self.rotary_embeddings": "rotary_embeddings",
}


def new_name(name: str) -> str:
    """Of a tensor of ESM, which Transformers writes under old names and reads under both."""
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def auto_class(model_type: str) -> type:
    """What loads a model of this family."""
    return AutoModelForMaskedLM if model_type in ENCODERS else AutoModelForCausalLM


def save(
    model_type: str, folder: Path, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB", **changes
) -> Path:
    """Saves a random model of the family's shape with tokenizer and generation config, and returns the folder."""
    return write(make(model_type, dtype, **{**(SHAPES | WRAPPED)[model_type], **changes}), folder, max_shard_size)


def llama(folder: Path, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB", **changes) -> Path:
    """The same for a plain Llama with tied embeddings."""
    return write(make("llama", dtype, **{**SHAPE, "tie_word_embeddings": True, **changes}), folder, max_shard_size)


def write(model: PreTrainedModel, folder: Path, max_shard_size: str) -> Path:
    if model.can_generate():
        model.generation_config.temperature = 0.7
        model.generation_config.do_sample = True
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer().save_pretrained(folder)
    return folder
