"""A tiny real GGUF file, written with the gguf package: the model and tokenizer of `checkpoints`, unquantized."""

import json
from pathlib import Path

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import checkpoints

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


TYPES = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, str: gguf.GGUFValueType.STRING}


def write(
    file: Path,
    tokenizer: str | None = "whole",
    keys: dict | None = None,
    tensors: dict | None = None,
    without: str = "nothing",
) -> Path:
    """
    `tokenizer`: "whole"; "broken", with a merge of tokens that it lacks; None for a file without one. `keys`, of the
    architecture if they begin with a dot, and `tensors` are written besides; tensors whose name begins with `without`
    are left out.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    shape = {**checkpoints.SHAPE, "hidden_size": 64, "head_dim": 16}
    model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if tokenizer:
        add_tokenizer(writer, broken=tokenizer == "broken")
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" and not gguf_name(name).startswith(without):
            writer.add_tensor(gguf_name(name), permuted(name, tensor, config).contiguous().numpy())
    for key, value in (keys or {}).items():
        writer.add_key_value(f"llama{key}" if key.startswith(".") else key, value, TYPES[type(value)])
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def permuted(name: str, weight: torch.Tensor, config: LlamaConfig) -> torch.Tensor:
    """llama.cpp rotates interleaved pairs, so its files hold query and key rows in that order."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def add_tokenizer(writer: gguf.GGUFWriter, broken: bool) -> None:
    tokenizer = checkpoints.tokenizer()
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.all_special_tokens)
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in vocabulary]
    )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_token_merges([*merges, "no such"] if broken else merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(checkpoints.CHAT_TEMPLATE)
