"""Why architectures that people will try cannot be converted: model_type -> what it has that Nexus has not."""

_MIXTURE = "its feed-forward blocks are mixtures of experts, and Nexus has dense ones only"
_LATENT = "it attends to compressed (latent) keys and values, which Nexus does not"
_LEARNED = "it adds learned positions to the embeddings, and Nexus has rotary ones only"
_ALIBI = "its attention has ALiBi positions, and Nexus has rotary ones only"
_NO_ATTENTION = "most or all of its layers are not softmax attention, so there is nothing to nest"
_ONE_NORM = "its attention and feed-forward read one and the same norm, and Nexus has one for each"

REFUSED = {
    **dict.fromkeys(
        """
        dbrx ernie4_5_moe glm4_moe gpt_oss granitemoe llama4 llama4_text mixtral olmoe phimoe qwen2_moe qwen3_moe
        """.split(),
        _MIXTURE,
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), f"{_LATENT}, and {_MIXTURE}"),
    "minicpm3": _LATENT,
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gpt_neo", "openai-gpt", "opt"), _LEARNED),
    **dict.fromkeys(("bloom", "mpt"), _ALIBI),
    **dict.fromkeys(
        """
        bamba falcon_mamba jamba lfm2 mamba mamba2 nemotron_h qwen3_5 qwen3_next recurrent_gemma rwkv zamba2
        """.split(),
        _NO_ATTENTION,
    ),
    "falcon_h1": "every layer adds a state-space model to its attention, and Nexus has attention alone",
    **dict.fromkeys(("codegen", "gptj"), f"{_ONE_NORM}, and its logits have a bias"),
    "phi": f"{_ONE_NORM}, and its logits have a bias; Phi-3 can be converted",
    "cohere": _ONE_NORM,
    "cohere2": _ONE_NORM,
    "falcon": f"{_ONE_NORM}, at least in the 7B, and some of its models have ALiBi positions",
    "gemma2": "it soft-caps logits and attention, which Nexus does not; Gemma 3 can be converted",
    "olmo": "its norms have no weights, and it clips queries, keys and values in some models; OLMo 2 can be converted",
    "bert": "it adds learned positions to the embeddings, and its norms come after the sum with the residual stream",
    "modernbert": "it norms its embeddings and not what its first attention reads, and Nexus has a norm in every layer",
    "nemotron": "it has LayerNorm of 1 + w, which Nexus has not",
    "persimmon": "it has LayerNorm on queries and keys, and Nexus has RMS norm there",
    "apertus": "its activation (xIELU) has weights of its own, which Nexus has not",
    "diffllama": "its attention is the difference of two, and Nexus has plain softmax attention",
    "hunyuan_v1_dense": "it norms queries and keys after it rotates them, and Nexus does so before",
    "ministral3": "it scales queries by their position, which Nexus does not",
}
