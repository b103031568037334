"""
One run of the retrofit experiment: the source or its conversion, trained in one of five ways and measured.

The source is the converted model at order 1: the same weights without an inner attention, whose logits are those of the
original checkpoint bit for bit. Training runs under bfloat16 autocast with float32 weights, measuring in float32.
"""

import math
import re
import time
from pathlib import Path

import torch
from torch import nn

from common import costs
from nexus_transformers import NexusConfig, NexusForCausalLM

from ..models import WITH_W_O
from ..runs import Advance
from ..trainer import silent_trainer
from .tasks import OTHER, TASKS, Row, collate, measure, rows

LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
WARM_UP = 0.1  # share of the steps


class Temperature(nn.Module):
    """A learned factor on all queries, or all keys, of a layer: the control with as many parameters as gates."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, projected: torch.Tensor) -> torch.Tensor:
        return projected * self.temperature


def add_temperatures(model: NexusForCausalLM) -> dict[str, nn.Parameter]:
    """Puts one on the queries and one on the keys of every layer, at 1, where other models have norms of them."""
    for layer in model.model.layers:
        layer.self_attn.q_norm, layer.self_attn.k_norm = Temperature(), Temperature()
    return {name: parameter for name, parameter in model.named_parameters() if name.endswith(".temperature")}


def config_of(folder: Path, order: int | list[int], form: dict | None = None) -> NexusConfig:
    """The converted model at this order, in a form (fields of its config): by default that of version 0.1."""
    form = WITH_W_O if form is None else form
    return NexusConfig.from_pretrained(folder / "model", attention_order=order, **form)


def load(folder: Path, order: int | list[int], form: dict | None = None) -> NexusForCausalLM:
    """What "separate" has beyond the converted model is drawn at random."""
    config = config_of(folder, order, form)
    return NexusForCausalLM.from_pretrained(folder / "model", config=config, dtype=torch.float32)


def make_trainable(model: NexusForCausalLM, trained: str, gate_start: float = 0.0) -> tuple[nn.Module, list]:
    """
    Leaves trainable what `trained` names: "everything", "LoRA", "gates", "LoRA + gates", "temperatures" or "nothing".
    Gates are trained wherever the model has them, except with "nothing".

    Returns the model, which for LoRA is another one around it, and the scalars among its trained parameters.
    """
    for gate in model.gates().values():
        nn.init.constant_(gate, gate_start)
    if trained == "nothing":
        model.requires_grad_(False)
        return model, []
    if trained.startswith("LoRA"):
        from peft import LoraConfig, get_peft_model  # seconds, which the other runs need not wait

        saved = ["inner_norm"] if "gates" in trained else None
        model = get_peft_model(model, LoraConfig(**LORA, modules_to_save=saved))
        return model, list(model.get_base_model().gates().values())
    if trained == "gates":
        model.freeze_all_but_gates()
    elif trained == "temperatures":
        model.requires_grad_(False)
        return model, [parameter.requires_grad_(True) for parameter in add_temperatures(model).values()]
    return model, list(model.gates().values())


def optimizer_and_schedule(
    model: nn.Module, scalars: list[nn.Parameter], run: dict
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """
    AdamW without weight decay, scalars with a learning rate of their own; warm-up, then cosine to 0. `gates_alone`
    holds all else still for that share of the steps.
    """
    known = {id(parameter) for parameter in scalars}
    others = [each for each in model.parameters() if each.requires_grad and id(each) not in known]

    def shape(begin: float):
        def factor(step: int) -> float:
            done = (step / run["steps"] - begin) / (1 - begin)  # of what the group has
            if done < 0:
                return 0.0
            return min(1.0, (done + 1 / run["steps"]) / WARM_UP) * (1 + math.cos(math.pi * done)) / 2

        return factor

    groups = [
        ({"params": others, "lr": run["learning_rate"]}, shape(run.get("gates_alone", 0.0))),
        ({"params": scalars, "lr": run["scalar_learning_rate"]}, shape(0.0)),
    ]
    groups = [group for group in groups if group[0]["params"]]
    adam = torch.optim.AdamW([parameters for parameters, _ in groups], weight_decay=0.0, fused=True)
    return adam, torch.optim.lr_scheduler.LambdaLR(adam, [factor for _, factor in groups])


def train(model: nn.Module, scalars: list[nn.Parameter], examples: list[Row], run: dict, advance: Advance) -> list:
    """Returns the training loss, in nats per asked token, at 50 steps at most."""
    arguments = {
        "per_device_train_batch_size": run["batch"],
        "bf16": run["bf16"],
        "logging_steps": math.ceil(run["steps"] / 50),
        "remove_unused_columns": False,  # of the rows: `collate` reads them
    }
    options = {"data_collator": collate, "optimizers": optimizer_and_schedule(model, scalars, run)}
    with silent_trainer(model, run, advance, arguments, train_dataset=examples, **options) as (trainer, curve):
        trainer.train()
        # Trainer left autocast in the model's forward: measuring would be in bfloat16, unlike that of the source
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return curve


def one_run(folder: str, run: dict, advance: Advance) -> dict:
    """Trains as the settings say, and measures on what was trained on and on the other text."""
    kind = run["corpus"]
    model = load(Path(folder), run["order"], run.get("form"))
    config = model.config
    model, scalars = make_trainable(model, run["trained"], run.get("gate_start", 0.0))
    examples = rows(Path(folder), kind, "train")
    result: dict = {}
    if run["steps"] > 0:
        start = time.process_time()
        result["curve"] = train(model, scalars, examples, run, advance)
        result["training_cpu_seconds"] = round(time.process_time() - start, 1)
    test = rows(Path(folder), kind, "test")
    loss, exact = measure(model, test)
    result |= {
        "validation_loss": measure(model, rows(Path(folder), kind, "validation"))[0],
        "loss": loss,
        "other_loss": measure(model, rows(Path(folder), OTHER, "test"))[0],
        "trained_parameters": sum(each.numel() for each in model.parameters() if each.requires_grad),
        "training_flops": run["steps"] * step_flops(config, run["trained"], examples, run["batch"]),
        "scalars": scalars_by_layer(model),
    }
    if "task" in test[0]:
        right = {task: [hit for row, hit in zip(test, exact, strict=True) if row["task"] == task] for task in TASKS}
        result["accuracy"] = {task: sum(hits) / len(hits) for task, hits in right.items()}
        result["mean_accuracy"] = sum(result["accuracy"].values()) / len(TASKS)
    return result


def scalars_by_layer(model: nn.Module) -> dict[str, list[float | None]]:
    """{"query_gate_1": one number per layer, …}, or the temperatures; None where a layer has none."""
    layers = getattr(model, "get_base_model", lambda: model)().model.layers
    found: dict[str, list[float | None]] = {}
    pattern = re.compile(r"layers\.(\d+)\..*?(?:(\w+_gate_\d+)|([qk])_norm\.temperature)$")
    for name, parameter in model.named_parameters():
        match = pattern.search(name)
        if match and ".original_module." not in name:
            kind = match[2] or {"q": "query_temperature", "k": "key_temperature"}[match[3]]
            found.setdefault(kind, [None] * len(layers))[int(match[1])] = round(parameter.item(), 5)
    return found


def step_flops(config: NexusConfig, trained: str, examples: list[Row], batch: int) -> int:
    """
    Operations of one training step on rows of average size. Frozen weights need no gradient of their own: their
    products cost two in place of three, and one below the lowest layer with anything to train.
    """
    length = round(sum(len(row["ids"]) for row in examples) / len(examples))
    logits = round(sum(row["asked"] + 1 for row in examples) / len(examples))
    full = costs.flops(config, batch, length, logits=logits, training=True)
    if trained == "everything":
        return full["total"]
    forward = costs.flops(config, batch, length, logits=logits)
    nested = [layer for layer, order in enumerate(config.layer_orders) if order > 1]
    lowest = nested[0] if trained == "gates" else 0
    below = config.to_dict() | {"num_layers": lowest, "attention_order": config.layer_orders[:lowest]}
    below = backward(NexusConfig.from_dict(below), batch, length, 0) if lowest else 0
    adapters = lora_flops(config, batch * length) if trained.startswith("LoRA") else 0
    return forward["total"] + backward(config, batch, length, logits) - below + adapters


def backward(config: NexusConfig, batch: int, length: int, logits: int) -> int:
    """Of a backward pass that gives no weight a gradient: it takes one product per weight, as the forward pass does."""
    forward = costs.flops(config, batch, length, logits=logits)
    both = costs.flops(config, batch, length, logits=logits, training=True)
    return forward["total"] - forward["attention"] + both["attention"] - forward["attention"]


def lora_flops(config: NexusConfig, tokens: int) -> int:
    """
    Of the adapters alone, three products each. Those of queries and keys are used at every level, those of outputs too
    where W_O is between the levels.
    """
    query, key_value = costs.widths(config)
    hidden, inner = config.hidden_size, config.intermediate_size
    numbers = 0
    for order in config.layer_orders:
        outputs = order if config.inner_output_projection else 1
        numbers += order * (2 * hidden + query + key_value) + outputs * (query + hidden)
        numbers += (hidden + key_value) + 3 * (hidden + inner)
    return 3 * 2 * tokens * LORA["r"] * numbers
