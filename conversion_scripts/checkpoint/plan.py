"""
What a conversion will write: every tensor of the result, and how to make it from the source's. Nothing is read yet.
Every source tensor must have a place, every place a source tensor, and every shape must be right.
"""

from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ...configuration_nexus import NexusConfig
from ...errors import ConversionError, reason_of
from ...modeling_nexus import NexusForCausalLM
from ..families import Family
from .shards import Planned
from .source import NOT_TOGETHER, Checkpoint, Source


def plan_nexus(source: Source, config: NexusConfig, dtype: torch.dtype | None) -> dict[str, Planned]:
    """A standard checkpoint -> the tensors of a Nexus model, gates included. `dtype` None keeps each tensor's own."""
    expected = shapes_of_model(lambda: NexusForCausalLM(config), source)
    plan: dict[str, Planned] = {}
    for name, shape in source.shapes.items():
        rule = source.family.rule_of(name)
        if not rule.targets:
            continue
        parts = parts_of(source, name, torch.empty(shape, device="meta"), config)
        for number, (target, part) in enumerate(zip(rule.targets, parts, strict=True)):
            if target not in expected:
                raise ConversionError(
                    f"{source.label}: tensor {name!r} would become {target!r}, which a model with this config.json "
                    f"does not have. {NOT_TOGETHER}"
                )
            check_shape(source, name, part, expected[target])
            if target in plan:
                raise ConversionError(
                    f"{source.label}: tensor {name!r} would become {target!r}, as another one does. Which of them "
                    "counts cannot be known; download the checkpoint again."
                )
            tensor = part.to(dtype or source.dtypes[name])
            plan[target] = Planned(tensor, partial(read_part, source, name, number, config), origin(source, name))
    for target, tensor in expected.items():
        if ".source_norm." in target:
            gate = partial(torch.full, tensor.shape, float(config.source_gate_init))
            plan[target] = Planned(tensor.to(config.dtype), gate, "--gate-init")
        elif target not in plan and not (config.tie_word_embeddings and target in source.family.optional):
            raise ConversionError(f"{source.label}: lacks tensor {target!r}; the checkpoint is incomplete.")
    return {target: plan[target] for target in expected if target in plan}  # in the order of the model


def plan_source(nexus: Checkpoint, family: Family, config: NexusConfig, source_config: Any) -> dict[str, Planned]:
    """A Nexus model -> the tensors of the standard one. Gates and inner projections have no place in it."""
    expected = shapes_of_model(lambda: AutoModelForCausalLM.from_config(source_config), nexus)
    plan, used = {}, set()
    for in_memory, tensor in expected.items():
        name = family.saved_as.get(in_memory, in_memory)
        targets = family.rule_of(name).targets
        if config.tie_word_embeddings and set(targets) <= family.optional and not set(targets) <= set(nexus.shapes):
            continue
        for target in targets:
            if target not in nexus.shapes:
                raise ConversionError(f"{nexus.label}: lacks tensor {target!r}; the model is incomplete.")
        parts = [torch.empty(nexus.shapes[target], device="meta") for target in targets]
        joined = family.rule_of(name).join(parts, config)
        check_shape(nexus, ", ".join(targets), joined, tensor)
        joined = joined.to(nexus.dtypes[targets[0]])
        plan[name] = Planned(joined, partial(read_joined, nexus, family, name, config), origin(nexus, targets[0]))
        used.update(targets)
    for name in nexus.shapes:
        if name not in used and ".source_norm." not in name and ".self_attn.inner." not in name:
            raise ConversionError(f"{nexus.label}: tensor {name!r} has no place in a {family.model_type} model.")
    return plan


def shapes_of_model(make: Any, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Its state dict, on the meta device."""
    try:
        with torch.device("meta"):
            model = make()
    except (RuntimeError, OverflowError, MemoryError) as error:
        raise ConversionError(
            f"{checkpoint.folder / 'config.json'}: no model can have these sizes ({reason_of(error)})."
        ) from error
    return model.state_dict()


def check_shape(checkpoint: Checkpoint, name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    if actual.shape != expected.shape:
        raise ConversionError(
            f"{checkpoint.label}: tensor {name!r} has shape {list(actual.shape)}, but config.json calls for "
            f"{list(expected.shape)}. {NOT_TOGETHER}"
        )


def parts_of(source: Source, name: str, tensor: torch.Tensor, config: NexusConfig) -> tuple[torch.Tensor, ...]:
    try:
        return source.family.rule_of(name).split(tensor, config)
    except (RuntimeError, ValueError) as error:  # a view or split that the shape does not allow
        raise ConversionError(
            f"{source.label}: tensor {name!r} of shape {list(tensor.shape)} cannot be split into heads as config.json "
            f"says. {NOT_TOGETHER}"
        ) from error


def read_part(source: Source, name: str, number: int, config: NexusConfig) -> torch.Tensor:
    return parts_of(source, name, source.read(name), config)[number]


def read_joined(nexus: Checkpoint, family: Family, name: str, config: NexusConfig) -> torch.Tensor:
    rule = family.rule_of(name)
    return rule.join([nexus.read(target) for target in rule.targets], config)


def origin(checkpoint: Checkpoint, name: str) -> str:
    return f"{checkpoint.label}: tensor {name!r}"
