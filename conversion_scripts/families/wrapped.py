"""Models of text and images, of which the language model alone is taken: it is of a family that there is."""

import re
from typing import Any, NamedTuple

from transformers import AutoConfig, PreTrainedConfig

from .rules import without


class Wrapper(NamedTuple):
    models: str
    family: str | None = None  # of its language model, by default what its text_config says


WRAPPERS = {
    "gemma3": Wrapper("Gemma 3, 4B to 27B"),
    "mistral3": Wrapper("Mistral Small 3.1 and 3.2"),
    "qwen2_5_vl": Wrapper("Qwen2.5-VL", "qwen2"),
    "qwen3_vl": Wrapper("Qwen3-VL, dense", "qwen3"),
}

_OF_IMAGES = "image_token_id video_token_id vision_config vision_end_token_id vision_start_token_id vision_token_id"
_ROPE = "rope_local_base_freq rope_parameters rope_scaling rope_theta"  # the wrapper has defaults of its own
_IMAGES = re.compile(r"(model\.)?(visual|vision_tower|multi_modal_projector)\.")
_LANGUAGE_MODEL = re.compile(r"(model\.)?language_model\.(model\.)?")


def raw_language_model(raw: dict[str, Any]) -> dict[str, Any]:
    """config.json -> the part of it that says what the language model is, as if that were alone."""
    text = raw.get("text_config")
    if not isinstance(text, dict):  # as Qwen2.5-VL was saved by Transformers 4
        text = without(raw, *_OF_IMAGES.split())
    family = WRAPPERS[raw["model_type"]].family or text.get("model_type")
    dtype = raw.get("dtype") or raw.get("torch_dtype") or text.get("dtype")
    return {**without(text, *_ROPE.split()), "model_type": family, "dtype": dtype}


def language_model(config: PreTrainedConfig, family: str, tied: bool) -> PreTrainedConfig:
    """Transformers' reading of such a config.json -> the config of the language model alone. `tied`: its embeddings."""
    text = config.get_text_config().to_dict()
    # Of text, all three positions are the same.
    rope = without(text["rope_parameters"], "mrope_section", "mrope_interleaved", "type")
    return AutoConfig.for_model(**{**text, "model_type": family, "rope_parameters": rope, "tie_word_embeddings": tied})


def name_in_language_model(name: str) -> str | None:
    """The name of a tensor in the language model alone; None for what is not of it."""
    if _IMAGES.match(name):
        return None
    named = _LANGUAGE_MODEL.match(name)
    if named is None:
        return name
    rest = name[named.end() :]
    return rest if rest.startswith("lm_head.") else f"model.{rest}"
