"""How a config.json was spelled before Transformers 5, for tools that read it with Transformers 4."""

from typing import Any


def with_old_spellings(config: dict[str, Any]) -> dict[str, Any]:
    """
    A config.json as Transformers 5 writes it -> the same, and what Transformers 4 reads in its place. It ignores
    `rope_parameters` and `dtype`: without the old names, every model has its defaults.
    """
    rope = dict(config.get("rope_parameters") or {})
    sliding = rope.get("sliding_attention", {})  # of sources that have another one there
    rope = dict(rope.get("full_attention", rope))
    theta, share = rope.pop("rope_theta", None), rope.pop("partial_rotary_factor", None)
    old: dict[str, Any] = {"torch_dtype": config.get("dtype")}
    kind = rope.get("rope_type", "default")
    if kind != "default" and sliding:
        old["rope_scaling"] = rope
    elif kind in ("linear", "dynamic"):
        old["rope_scaling"] = {"type": kind, "factor": rope["factor"]}  # OLMo 2, and others before 4.43, want no more
    elif kind != "default" and config["model_type"] == "phi3":  # which wants a type and two lists of factors, no more
        elsewhere = ("rope_type", "original_max_position_embeddings")
        old["rope_scaling"] = {name: value for name, value in rope.items() if name not in elsewhere} | {"type": kind}
    elif kind != "default" or config["model_type"] == "cwm":  # which scales where nothing is said
        old["rope_scaling"] = rope
    if config["model_type"] == "gpt_neox":
        old |= {"rotary_emb_base": theta, "rotary_pct": 1.0 if share is None else share}
    else:
        old |= {"rope_theta": theta, "partial_rotary_factor": share}
    if config["model_type"] == "gemma3_text":
        old["rope_local_base_freq"] = sliding["rope_theta"]
    if config["model_type"] == "phi3":
        old["original_max_position_embeddings"] = rope.get(
            "original_max_position_embeddings", config["max_position_embeddings"]
        )
    return config | {name: value for name, value in old.items() if value is not None and name not in config}
