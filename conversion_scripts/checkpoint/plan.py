"""
What a conversion will write: every tensor of the result, and how to make it from the source's. Nothing is read yet.
Every source tensor must have a place, every place a source tensor, and every shape must be right.
"""

from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from ... import modeling_nexus
from ...configuration_nexus import NexusConfig
from ...errors import CheckpointError, ConversionError, told_as
from ..families import Family
from ..families.rules import LEFT_BEHIND
from .added import initial, is_gate, is_nesting
from .open import Nexus, Source
from .shards import Planned
from .weights import NOT_TOGETHER, Checkpoint, unreadable


def plan_nexus(
    source: Source, config: NexusConfig, dtype: torch.dtype | None, seed: int | None = None
) -> dict[str, Planned]:
    """
    A standard checkpoint -> the tensors of a Nexus model, gates and inner layers included. `dtype` None keeps each
    tensor's own. `seed`: of the weights that the source does not have.
    """
    model_class = getattr(modeling_nexus, source.family.architecture)
    expected = shapes_of_model(lambda: model_class(config), source)
    plan: dict[str, Planned] = {}
    for name in source.unreadable:
        if source.family.rule_of(name).targets:
            raise unreadable(source, name)
    for name, tensor in source.tensors.items():
        rule = source.family.rule_of(name)
        if not rule.targets:
            continue
        parts = parts_of(source, name, tensor, config)
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
            plan[target] = Planned(
                part.to(dtype or part.dtype), partial(read_part, source, name, number, config), origin(source, name)
            )
    for target, tensor in expected.items():
        if is_nesting(target):
            read = partial(initial, target, tensor.shape, config, seed)
            cause = "--gate-init" if is_gate(target) else f"{source.label}: initializer_range"
            plan[target] = Planned(tensor.to(config.dtype), read, cause)
        elif target not in plan and not (config.tie_word_embeddings and target in source.family.optional):
            raise CheckpointError(f"{source.label}: lacks tensor {target!r}; the checkpoint is incomplete.")
    return {target: plan[target] for target in expected if target in plan}  # in the order of the model


def plan_source(nexus: Nexus, family: Family, source_config: Any) -> dict[str, Planned]:
    """A Nexus model -> the tensors of the standard one. Gates and inner layers have no place in it."""
    config = nexus.config
    auto_class = AutoModelForMaskedLM if family.is_encoder else AutoModelForCausalLM
    expected = shapes_of_model(lambda: auto_class.from_config(source_config, trust_remote_code=False), nexus)
    plan, used = {}, set()
    for in_memory, tensor in expected.items():
        name = family.saved_as.get(in_memory, in_memory)
        rule = family.rule_of(name)
        targets = rule.targets
        if rule == LEFT_BEHIND:
            continue
        if targets and config.tie_word_embeddings and set(targets) <= family.optional - nexus.tensors.keys():
            continue
        for target in targets:
            if target not in nexus.tensors:
                raise CheckpointError(f"{nexus.label}: lacks tensor {target!r}; the model is incomplete.")
        parts = [nexus.tensors[target] for target in targets]
        joined = rule.join(parts, config)
        check_shape(nexus, ", ".join(targets) or name, joined, tensor)
        cause = origin(nexus, targets[0] if targets else name)
        plan[name] = Planned(joined.to("meta"), partial(read_joined, nexus, family, name, config), cause)
        used.update(targets)
    for name in nexus.tensors:
        if name not in used and not is_nesting(name):
            raise ConversionError(f"{nexus.label}: tensor {name!r} has no place in a {family.model_type} model.")
    return plan


def check_tensors(nexus: Nexus, architecture: str) -> None:
    """
    The files have every tensor that this class of model has, and no other: Transformers would make up the one and drop
    the other. Raises `CheckpointError`.
    """
    model_class = getattr(modeling_nexus, architecture)
    expected = shapes_of_model(lambda: model_class(nexus.config), nexus)
    for name in nexus.unreadable:
        raise unreadable(nexus, name)
    tied = set(model_class._tied_weights_keys or ()) if nexus.config.tie_word_embeddings else set()
    lacking = [name for name in expected if name not in nexus.tensors and name not in tied]
    unknown = [name for name in nexus.tensors if name not in expected]
    if (lacking or unknown) and nexus.architecture != architecture:
        raise CheckpointError(
            f"{nexus.label}: was saved as {nexus.architecture}, and this needs {architecture}. Load it as that, with "
            "its head, and save it again."
        )
    if lacking:
        raise CheckpointError(f"{nexus.label}: lacks tensor {lacking[0]!r}; the model is incomplete.")
    if unknown:
        raise CheckpointError(f"{nexus.label}: holds tensor {unknown[0]!r}, which {architecture} does not have.")
    for name, tensor in nexus.tensors.items():
        check_shape(nexus, name, tensor, expected[name])


def shapes_of_model(make: Any, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Its state dict, on the meta device."""
    file = checkpoint.folder / "config.json"
    failure = f"{file}: no model can be made with these sizes and settings ({{reason}})."
    with told_as(CheckpointError, failure), torch.device("meta"):
        return make().state_dict()


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
