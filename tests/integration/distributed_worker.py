"""
What every process runs that torchrun starts for test_distributed.py: `distributed_worker.py FOLDER`.

FOLDER holds `cases.json`, `ids.pt` and the models. For each case a process writes what it saw of the loss, the
gradients and the parameters to `CASE.RANK.pt`; the comparing is done by the test.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.distributed import DistributedConfig

from nexus_transformers import NexusConfig, NexusForCausalLM, NexusForMaskedLM
from nexus_transformers.gate_callback import gate_values


def load(folder: Path, kind: str, without_rules: list[str]) -> NexusForCausalLM | NexusForMaskedLM:
    config = NexusConfig.from_pretrained(folder)
    model_class = NexusForCausalLM if config.is_causal else NexusForMaskedLM
    if kind == "tp":
        for module in without_rules:
            plan = config.base_model_tp_plan
            config.base_model_tp_plan = {name: rule for name, rule in plan.items() if not name.endswith(module)}
        return model_class.from_pretrained(folder, config=config, tp_plan="auto")
    if kind == "fsdp_config":
        return model_class.from_pretrained(folder, distributed_config=DistributedConfig(fsdp_size=2))
    model = model_class.from_pretrained(folder)
    if kind == "fsdp":
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    return model


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as this process believes all of it to be; not compared between processes here."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def local_shape(tensor: torch.Tensor) -> list[int]:
    return list((tensor.to_local() if isinstance(tensor, DTensor) else tensor).shape)


def run(case: dict, folder: Path, ids: torch.Tensor) -> dict:
    kind, rank = case["kind"], dist.get_rank()
    model = load(folder / case["model"], kind, case.get("without_rules", [])).train()
    if case.get("gates_only"):
        model.freeze_all_but_gates()
    if case.get("reentrant") is not None:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # 5.16
        enable({"use_reentrant": case["reentrant"]})
    calls = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    result = {
        "local_shapes": {name: local_shape(parameter) for name, parameter in model.named_parameters()},
        "not_dtensor": [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)],
        "wrapped": [name for name, module in model.named_modules() if isinstance(module, FSDPModule)],
    }

    # Transformers' loss of masked language models wants contiguous labels
    batch = ids if kind == "tp" else ids[rank :: dist.get_world_size()].contiguous()
    if case.get("other_data") and rank == 1:
        batch = (batch + 1) % model.config.vocab_size
    runner = DistributedDataParallel(model) if kind == "ddp" else model
    parts = batch.chunk(2) if case.get("accumulated") else [batch]
    losses = [runner(part, labels=part).loss / len(parts) for part in parts]
    for loss in losses:
        loss.backward()
    mean = sum(losses).detach()
    dist.all_reduce(mean)
    result["loss"] = mean / dist.get_world_size()
    result["mlp_calls"] = len(calls)
    parameters = dict(model.named_parameters())
    result["gradients"] = {name: whole(p.grad) for name, p in parameters.items() if p.grad is not None}

    if kind != "tp":
        torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3).step()
        result["stepped"] = {name: whole(parameter) for name, parameter in model.named_parameters()}
        result["logged"] = gate_values(model)
        result["closed"] = model.eval().skip_closed_levels()
    if kind == "tp" and model.config.is_causal:
        arguments = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        result["tokens"] = model.eval().generate(ids[:2], **arguments)
        result["tokens_static"] = model.generate(ids[:2], cache_implementation="static", **arguments)
    return result


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    ids = torch.load(folder / "ids.pt")
    for case in json.loads((folder / "cases.json").read_text()):
        torch.manual_seed(0)
        torch.save(run(case, folder, ids), folder / f"{case['name']}.{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
