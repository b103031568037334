"""How the result of a conversion is nested: what the options of `nexus convert` say, as fields of a NexusConfig."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..configuration_nexus import BRANCHES, NexusConfig
from ..errors import ConversionError, told_as
from ..inputs_nexus import refuse_encoder, refuse_uneven_slots
from .checkpoint.open import Source
from .checkpoint.shards import DTYPE_NAMES
from .checkpoint.weights import SAFETENSORS_DTYPES


@dataclass
class Nesting:
    """
    Args:
        order: attention order, one for all layers or one per layer.
        gate_init: where the gates start; 0 computes the source's function. None makes a model without gates, which is
            fully nested at once and computes another function (the paper's own retrofit, with "separate").
        inner_attention: "shared", "separate" or "self", as in `NexusConfig`.
        inner_output_projection: W_O between the levels. None turns it on only where the heads are not as wide as the
            model, which cannot do without.
        inner_scale: whether inner outputs are scaled, as in `NexusConfig`.
        inner_window: how many tokens inner levels attend to, as in `NexusConfig`; None: as many as the layer.
        refine: the projections that read the output of the inner level, any of "query", "key", "value".
        seed: of the weights of the inner layers of "separate"; None is 0. Nothing else is drawn.

    Raises:
        `ConversionError`: an unknown projection in `refine`, a gate that is no number of float32, a gate or a seed
            where there are no gates or nothing is drawn.
    """

    order: int | list[int] = 2
    gate_init: float | None = 0.0
    inner_attention: str = "shared"
    inner_output_projection: bool | None = None
    inner_scale: bool = True
    inner_window: int | None = None
    refine: Sequence[str] = ("query", "key")
    seed: int | None = None

    def __post_init__(self):
        if set(self.refine) - set(BRANCHES):
            raise ConversionError(
                f"--refine {','.join(self.refine)}: give any of {', '.join(BRANCHES)}, as in query,key."
            )
        self.refine = [branch for branch in BRANCHES if branch in self.refine]
        if (
            self.gate_init is not None and not abs(self.gate_init) <= torch.finfo(torch.float32).max
        ):  # NaN is not, either
            raise ConversionError(f"--gate-init {self.gate_init}: give a number that float32 has; 0 closes the gates.")
        if self.gate_init and not self.nested:
            raise ConversionError(
                f"--gate-init {self.gate_init}: has no effect: without a nested layer there are no gates. Leave it out."
            )
        draws = self.inner_attention == "separate" and self.nested
        if self.seed is not None and not draws:
            raise ConversionError(
                f"--seed {self.seed}: has no effect: only the inner layers of --inner-attention separate are random. "
                "Leave it out."
            )
        self.seed = (self.seed or 0) if draws else None

    @property
    def nested(self) -> bool:
        return max(self.order if isinstance(self.order, list) else [self.order]) > 1

    def config_fields(self, decoder: NexusConfig) -> dict[str, Any]:
        """`decoder`: the config of what is around it."""
        needs_projection = self.nested and self.inner_attention != "self" and not heads_fit(decoder)
        given = self.inner_output_projection
        return {
            "attention_order": self.order,
            "inner_attention": self.inner_attention,
            "inner_output_projection": needs_projection if given is None else given,
            "inner_scale": self.inner_scale,
            "inner_window": self.inner_window,
            **{f"refine_{branch}": branch in self.refine for branch in BRANCHES},
            "inner_gate": self.gate_init is not None and self.nested,
            "inner_gate_init": self.gate_init or 0.0,
        }

    def describe(self, config: NexusConfig) -> dict[str, Any]:
        """For the report: what was chosen, and why."""
        fit = "are as wide as" if heads_fit(config) else "are not as wide as"
        why = f"{config.num_attention_heads} heads of {config.head_dim} {fit} the model, {config.hidden_size}"
        if self.inner_output_projection is not None:
            why = "as asked"
        elif self.inner_attention == "self":
            why = "self has no projections"
        return {
            "is_encoder": not config.is_causal,
            "can_be_served": can_be_served(config),
            "attention_order": config.attention_order,
            "inner_attention": config.inner_attention,
            "refined": [each for each in BRANCHES if self.nested and getattr(config, f"refine_{each}")],
            "inner_output_projection": config.inner_output_projection,
            "inner_output_projection_because": why,
            "inner_scale": config.inner_scale,
            "inner_window": config.inner_window,
            "inner_gate": config.inner_gate,
            "gate_init": self.gate_init,
        }


def can_be_served(config: NexusConfig) -> bool:
    """By vLLM, whose cache has a slot for each attention call, all alike."""
    try:
        refuse_encoder(config, "vLLM")
        refuse_uneven_slots(config, "vLLM")
    except ValueError:
        return False
    return all(call.stores for layer in config.attention_calls() for call in layer)


def heads_fit(config: NexusConfig) -> bool:
    return config.num_attention_heads * config.head_dim == config.hidden_size


def nexus_config(source: Source, nesting: Nesting, dtype: torch.dtype | None) -> NexusConfig:
    """Raises `ConversionError` if the source cannot be nested so."""
    fields = source.nexus_fields()
    if source.dtype not in DTYPE_NAMES:
        raise ConversionError(
            f"{source.label}: config.json: dtype={str(source.dtype).removeprefix('torch.')!r} is none that a model can "
            f"be loaded in; only {', '.join(SAFETENSORS_DTYPES.values())} are."
        )
    order = nesting.order
    if isinstance(order, list) and len(order) != fields["num_layers"]:
        raise ConversionError(
            f"--order: {len(order)} orders were given, but {source.label} has {fields['num_layers']} layers. Give one "
            "order per layer, or one number for all."
        )
    decoder = source.decoder_config(fields)
    with told_as(ConversionError, f"{source.label}: does not make a Nexus model: {{reason}}."):
        config = NexusConfig(**fields, **nesting.config_fields(decoder), dtype=dtype or source.dtype)
    config.architectures = [source.family.architecture]
    return config
