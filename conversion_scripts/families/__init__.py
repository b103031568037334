"""
The source architectures that can be converted. One file each, holding a `Family`: how its config and its tensor names
translate to Nexus and back. A family is data; the code that applies it is here and serves all.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ...configuration_nexus import NexusConfig
from ...errors import ConversionError, reason_of
from .refused import REFUSED
from .rules import NOTHING, Computed, WeightRule, rope_of, whole, windowed_layers

# Fields of a config.json that say nothing about the function which the model computes: what PreTrainedConfig knows, or
# knew in an old version, generation settings, which Transformers moves to the generation config, and leftovers of
# training and other tools.
METADATA_FIELDS = frozenset({**GenerationConfig().to_dict(), **PreTrainedConfig().to_dict()}) | frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _num_labels
    add_cross_attention attn_implementation auto_map base_model bos_token cls_token_id cross_attention_hidden_size
    eos_token finetuning_task gradient_checkpointing is_decoder is_llama_config loss_type mask_token_id
    model_max_length neftune_noise_alpha num_labels num_logits_to_keep output_past pad_token prefix pruned_heads
    sep_token_id task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class tokenizer_model_max_length
    tokenizer_padding_side torch_dtype torchscript transformers.js_config unk_token unk_token_id unsloth_fixed
    unsloth_version use_bfloat16 use_cache use_flash_attention use_flash_attention_2 use_flash_attn use_return_dict
    xla_device
    """.split()
)
# Where Transformers' reading of a config.json puts these fields in `rope_parameters`, if the architecture has them
ROPE_FIELDS = {
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
}
LAYER = re.compile(r"((?<=\.layers\.)|(?<=\.layer\.))\d+(?=\.)")  # its number, in the name of a tensor
# Fields of a NexusConfig that say nothing about the function of its last levels, which is what a source computes
NESTING_FIELDS = frozenset(
    """
    attention_order refine_query refine_key refine_value inner_attention inner_output_projection inner_scale inner_gate
    inner_gate_init inner_window use_cache classifier_dropout classifier_pooling
    """.split()
)


@dataclass(frozen=True)
class Family:
    """
    One source architecture.

    Args:
        model_type: as in the source's config.json.
        models: which are of it, for the documentation.
        config: source field -> NexusConfig field of the same value.
        weights: source tensor name -> rule, `*` standing for the layer number on both sides.
        computed: fields that are not the same value under another name.
        fixed: NexusConfig field -> the value that is built into this architecture, where it is not the default.
        ignored: source fields that its modelling code does not read, or only to train: other dropouts than attention's.
        required: source field -> the only value that Nexus can reproduce.
        because: such a field -> why, where it is not that Nexus has no switch for it.
        in_weights: NexusConfig field -> how it is read from the weights, where config.json does not say it.
        partial_rotary: its modelling code can rotate a part of each head only.
        reorders: its modelling code multiplies or adds in another order.
        optional: Nexus tensors that a source may lack (a tied output projection).
        saved_as: name in the state dict of Transformers' class -> name in files, where they are not the same.
    """

    model_type: str
    models: str
    config: dict[str, str]
    weights: dict[str, WeightRule]
    computed: Computed = NOTHING
    fixed: dict[str, Any] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    required: dict[str, Any] = field(default_factory=dict)
    because: dict[str, str] = field(default_factory=dict)
    in_weights: dict[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    partial_rotary: bool = False
    reorders: bool = False
    optional: frozenset[str] = frozenset({"lm_head.weight"})
    saved_as: dict[str, str] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """What the names of the decoder's tensors begin with, in a model with a head: "model."."""
        return next(name for name in self.weights if "*" in name).split(".")[0] + "."

    @property
    def is_encoder(self) -> bool:
        """Its tokens see both sides, and it fills in masked ones."""
        return not self.fixed.get("is_causal", True)

    @property
    def architecture(self) -> str:
        """Our class of such a model."""
        return "NexusForMaskedLM" if self.is_encoder else "NexusForCausalLM"

    @property
    def rounds(self) -> bool:
        """
        The source multiplies several projections in one product, or adds in another order: logits agree up to rounding,
        not bit for bit.
        """
        return self.reorders or any(rule.split is not whole for rule in self.weights.values())

    def nexus_config(self, raw: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
        """
        The decoder fields of the Nexus config. `raw` is the source's config.json as it stands, searched for fields that
        nobody here knows; `config` is Transformers' reading of it, which the values come from, so that every way of
        spelling, say, a rotary theta is understood as Transformers understands it.
        """
        known = {*self.config, *self.computed.fields, *self.ignored, *self.required, *METADATA_FIELDS, *ROPE_FIELDS}
        for name in sorted(name for name in set(raw) - known - {"rope_scaling"} if raw[name] is not None):
            raise ConversionError(
                f"config.json: the field {name}={raw[name]!r} is unknown for model_type={self.model_type!r} and could "
                f"change what the model computes. Remove it if it does not, or report it so that it can be supported."
            )
        for name, value in self.required.items():
            said = raw.get(name, getattr(config, name, value))
            if said != value and not (is_off(said) and is_off(value)):
                raise ConversionError(
                    f"config.json: {name}={said!r} is not supported for model_type={self.model_type!r}, only {value!r} "
                    f"is: {self.because.get(name, 'Nexus has no switch for it')}."
                )
        check_numbers({name: getattr(config, name, None) for name in self.config})
        check_padding(config)
        for kind, rope in ropes(rope_of(config)).items():
            self._check_rope(raw if kind == "full_attention" else {}, rope)
        fields = {target: getattr(config, source, None) for source, target in self.config.items()}
        return deepcopy({**fields, **self.computed.read(config), **self.fixed})

    def _check_rope(self, raw: dict[str, Any], rope: dict[str, Any]) -> None:
        check_rope_numbers(rope)
        if rope.get("rope_type") not in ("default", *ROPE_INIT_FUNCTIONS):
            raise ConversionError(f"config.json: the rotary embedding {rope} is of no type that Transformers knows.")
        share = rope.get("partial_rotary_factor", 1.0)
        if share != 1.0 and not self.partial_rotary:
            raise ConversionError(
                f"config.json: partial_rotary_factor={share} is not supported for model_type={self.model_type!r}, "
                "whose modelling code rotates whole heads."
            )
        for name, key in ROPE_FIELDS.items():
            used = rope.get(key, 1.0)
            if raw.get(name) is not None and raw[name] != used:
                raise ConversionError(
                    f"config.json: {name}={raw[name]} has no effect for model_type={self.model_type!r}, for which "
                    f"Transformers reads {key}={used}. Remove it, or say it as Transformers understands it."
                )

    def source_config(self, config: NexusConfig) -> PreTrainedConfig:
        """
        The config of this architecture that says what `config` says of the last level of every layer, gates and inner
        levels left out. Raises `ConversionError`, naming the field, if this architecture cannot say it.
        """
        config = deepcopy(config)
        if not windowed_layers(config):  # the inner levels may have one
            config.sliding_window = config.sliding_layers = None
        fields = {source: deepcopy(getattr(config, target)) for source, target in self.config.items()}
        if config.head_dim == config.hidden_size // config.num_attention_heads:
            if not hasattr(CONFIG_MAPPING[self.model_type], "head_dim"):  # read where it is given, but rarely given
                fields.pop("head_dim", None)
        try:
            source_config = AutoConfig.for_model(self.model_type, **fields, **self.computed.write(config))
            expressed = decoder_fields(NexusConfig(**self.nexus_config({}, source_config), attention_order=1))
        except (StrictDataclassError, ValueError, KeyError) as error:
            raise ConversionError(
                f"cannot become a model of model_type={self.model_type!r}: {reason_of(error)}."
            ) from error
        wanted = decoder_fields(config).items()
        other = [
            f"{name}={value!r} (there {expressed[name]!r})"
            for name, value in wanted
            if value != expressed[name] and name not in self.in_weights
        ]
        if other:
            raise ConversionError(f"model_type={self.model_type!r} has no way to say {', '.join(other)}.")
        return source_config

    def knows(self, source_name: str) -> bool:
        pattern = LAYER.sub("*", source_name, count=1)
        # Of ESM, Transformers writes a buffer under a name with an asterisk in it.
        return pattern in self.weights and not ("*" in source_name and self.weights[pattern].targets)

    def sources_of(self, target: str) -> list[str]:
        """The names that a source tensor outside of the layers, which becomes this one, may have."""
        return [name for name, rule in self.weights.items() if rule.targets == (target,)]

    def rule_of(self, source_name: str) -> WeightRule:
        """The rule of a source tensor, layer numbers filled in; `ConversionError` if no rule names it."""
        layer = LAYER.search(source_name)
        pattern = LAYER.sub("*", source_name, count=1)
        if not self.knows(source_name):
            raise ConversionError(
                f"tensor {source_name!r} has no place in a Nexus model: no rule for model_type={self.model_type!r} "
                "names it. Remove the head of another task (a classifier, a reward), merge adapters and dequantize "
                "first, or report it if it belongs to this architecture."
            )
        rule = self.weights[pattern]
        return rule if layer is None else replace(rule, targets=tuple(t.replace("*", layer[0]) for t in rule.targets))


def is_off(value: Any) -> bool:
    """A config.json says null or false where a switch is off, by the version of Transformers. 0 is a value."""
    return value is None or value is False


def check_numbers(fields: dict[str, Any]) -> None:
    """Raises `ConversionError` for a number that no library can compute with."""
    for name, value in fields.items():
        if isinstance(value, int | float) and not -(2**63) < value < 2**63:  # nor is NaN
            raise ConversionError(f"config.json: {name}={value!r} is no number that a model can have; correct it.")


def check_padding(config: PreTrainedConfig) -> None:
    """Other ids beyond the vocabulary are only tokens that never come; this one is a row of the embedding."""
    token, rows = config.pad_token_id, config.vocab_size
    if isinstance(token, int) and isinstance(rows, int) and not -rows <= token < rows:
        raise ConversionError(
            f"config.json: pad_token_id={token}, but vocab_size={rows}, so the embedding has no row for it; correct "
            "one of them, or remove pad_token_id."
        )


def ropes(parameters: Any) -> dict[str, Any]:
    """The rotary settings of each kind of layer; of all, where it is one."""
    if isinstance(parameters, dict) and "full_attention" in parameters:
        if other := [name for name in parameters if not name.endswith("_attention")]:
            raise ConversionError(
                f"config.json: rope_parameters has {', '.join(other)} for all layers beside settings for each kind of "
                "layer, and Transformers reads these alone; say it for each kind."
            )
        return parameters
    return {"full_attention": parameters}


def check_rope_numbers(rope: dict[str, Any]) -> None:
    if not isinstance(rope, dict):
        raise ConversionError(f"config.json: rope_parameters={rope!r} are no rotary settings; correct them.")
    for name, value in rope.items():
        numbers = value if isinstance(value, list) else [value]
        if name in ("rope_type", "type") or value is None or isinstance(value, bool):
            continue
        if not all(type(each) in (int, float) and 0 <= each < 2**63 for each in numbers):
            raise ConversionError(f"config.json: {name}={value!r} is no number for a rotary embedding; correct it.")
        if name in ("rope_theta", "factor", "original_max_position_embeddings") and 0 in numbers:
            raise ConversionError(
                f"config.json: {name}={value!r} of a rotary embedding must be more than 0; correct it."
            )


def decoder_fields(config: NexusConfig) -> dict[str, Any]:
    """Every field that the function of the last levels depends on. Two configs that mean the same have the same."""
    fields = {name: getattr(config, name) for name in NexusConfig.__annotations__ if name not in NESTING_FIELDS}
    windowed = windowed_layers(config)
    ropes = ("rope_parameters", "sliding_rope_parameters")
    return fields | {
        **{name: without_whole_share(getattr(config, name)) for name in ropes},
        "sliding_layers": windowed,
        "sliding_window": config.sliding_window if windowed else None,
        "attention_multiplier": config.attention_multiplier or config.head_dim**-0.5,
        "mask_token_id": config.mask_token_id if config.token_dropout else None,
        "layers_without_rope": sorted(set(config.layers_without_rope or ())),
    }


def without_whole_share(rope: dict[str, Any] | None) -> dict[str, Any] | None:
    """Rotary settings in which "all of a head is rotated" is not said, as it goes without saying."""
    if rope is None or rope.get("partial_rotary_factor") != 1:
        return rope
    return {name: value for name, value in rope.items() if name != "partial_rotary_factor"}


MODULES = [import_module(f".{file.name}", __name__) for file in iter_modules(__path__)]
ALL = {each.MODEL_TYPE: Family(each.MODEL_TYPE, **each.RULES) for each in MODULES if hasattr(each, "RULES")}
FAMILIES = {name: family for name, family in ALL.items() if name in CONFIG_MAPPING}  # that this Transformers has


def family_of(model_type: Any, where: str) -> Family:
    """
    Raises `ConversionError`, which says why or lists the known ones, if the architecture cannot be converted. `where`:
    what says it, for the message.
    """
    if isinstance(model_type, str) and model_type in REFUSED:
        raise ConversionError(f"{where}{model_type!r} cannot be converted: {REFUSED[model_type]}.")
    if isinstance(model_type, str) and model_type in ALL.keys() - FAMILIES.keys():
        raise ConversionError(
            f"{where}{model_type!r} needs a newer Transformers than {transformers.__version__}, which "
            "is installed: pip install --upgrade transformers."
        )
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConversionError(
            f"{where}{model_type!r} is not an architecture that can be converted. Known: {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]
