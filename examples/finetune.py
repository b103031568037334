"""
Fine-tune a converted model with Trainer and measure the loss on held-out text before and after.

    python examples/finetune.py MODEL_FOLDER OUT_FOLDER [--train lora|all|gates] [--steps 40] [--plot gates.png]

MODEL_FOLDER is what `nexus convert` wrote, or a Hub id. `--train` says what learns:

    lora    LoRA adapters and the gates (default). Needs PEFT. The adapters are merged into the weights at the end.
    all     every weight and the gates.
    gates   the gates alone. This learns little.

The text is Python's own documentation, which comes with every Python. Replace `documents()` by your own text.
"""

import argparse
import json
import random
import shutil
from pathlib import Path
from pydoc_data.topics import topics

import torch
from huggingface_hub import ModelCard, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

try:
    from nexus_transformers import GateCallback  # logs the gates while they train
except ImportError:  # the model folder brings all that is needed
    GateCallback = None

# The best of three or four rates for SmolLM2-135M and 40 steps of text. Search again for your model and data.
LEARNING_RATES = {"lora": 3e-3, "all": 1e-4}
GATE_LEARNING_RATE = 3e-3
CARD = "README.md"
LICENCES = ("license", "licence", "notice", "copying", "use_policy")  # many say that every copy must hold them
TRAINED = {
    "lora": "LoRA adapters on all linear layers, since merged into the weights, and its {gates} gates were trained",
    "all": "All its weights and its {gates} gates were trained",
    "gates": "Its {gates} gates alone were trained",
}


def documents() -> tuple[list[str], list[str]]:
    """Documents to train on, and others to measure on."""
    texts = [topics[name] for name in sorted(topics)]
    random.Random(0).shuffle(texts)
    return texts[len(texts) // 5 :], texts[: len(texts) // 5]


def blocks(tokenizer, texts: list[str], length: int) -> list[dict]:
    """The texts joined and cut into blocks of `length` tokens."""
    ids = tokenizer((tokenizer.eos_token or "\n\n").join(texts))["input_ids"]
    starts = range(0, len(ids) - length, length)
    return [{"input_ids": ids[i : i + length], "labels": ids[i : i + length]} for i in starts]


def make_trainable(model, train: str):
    """Leaves trainable what `train` names. For LoRA, returns the model that PEFT puts around it."""
    if train == "gates":
        model.freeze_all_but_gates()
    if train == "lora":
        from peft import LoraConfig, get_peft_model

        # `modules_to_save` trains the gates beside the adapters.
        settings = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        return get_peft_model(model, LoraConfig(**settings, modules_to_save=["inner_norm"]))
    return model


def optimizer(model, learning_rate: float | None, gate_learning_rate: float) -> torch.optim.Optimizer:
    """AdamW with a learning rate of their own for the gates: they are few, and need a larger one than weights."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gates = [parameter for name, parameter in trainable.items() if ".inner_norm." in name]
    others = [parameter for name, parameter in trainable.items() if ".inner_norm." not in name]
    groups = [{"params": gates, "lr": gate_learning_rate}, {"params": others, "lr": learning_rate}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)


def plot_gates(gates: dict[str, float], log: list[dict], file: Path) -> None:
    """Each gate after training and, if `log` has them, how they got there."""
    from matplotlib.figure import Figure

    history = [entry for entry in log if "gates/mean" in entry]
    rows = 2 if history else 1
    figure = Figure(figsize=(9, 3.6 * rows), layout="constrained")
    axes, *below = figure.subplots(rows, squeeze=False)[:, 0]
    kinds = list(dict.fromkeys(name.split(".")[-1] for name in gates))  # such as query_gate_1
    width = 0.8 / len(kinds)
    for place, kind in enumerate(kinds):
        values = {int(name.split(".")[2]): value for name, value in gates.items() if name.endswith(kind)}
        left = [layer + width * (place + 0.5) - 0.4 for layer in values]
        axes.bar(left, values.values(), width=width, label=kind.replace("_gate_", ", level "))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="layer", ylabel="gate (0 closed, 1 fully nested)", title="Gates after training")
    for trace in below:
        for name in ("gates/mean", "gates/largest"):
            trace.plot([entry["step"] for entry in history], [entry[name] for entry in history], label=name)
        trace.set(xlabel="step", ylabel="size", title="Gates while they train")
    for each in figure.axes:
        each.legend(frameon=False)
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def write_card(model: str, out: Path, trained: str) -> None:
    """The model's licence, and its card with what was trained in place of what was checked before training."""
    is_here = Path(model).is_dir()
    folder = Path(model if is_here else snapshot_download(model, ignore_patterns=["*.safetensors", "*.bin", "*.pt"]))
    for file in folder.iterdir():
        if file.is_file() and any(word in file.name.lower() for word in LICENCES):
            shutil.copyfile(file, out / file.name)
    if not (folder / CARD).exists():
        print(f"{model} has no model card, so none was written. `nexus push` needs one: {out / CARD}.")
        return
    card = ModelCard.load(folder / CARD)
    card.data.model_name = card.data.eval_results = None  # figures of the model before
    start, *sections = card.text.strip().split("\n## ")
    title, _, earlier = start.partition("\n\n")
    if title.endswith(", fine-tuned"):  # as this script writes it
        trained = f"{trained}\n\nBefore that: {earlier.strip()}"
    kept = [section for section in sections if not section.startswith("What was checked")]
    card.text = "\n## ".join([f"# {Path(model).resolve().name}, fine-tuned\n\n{trained}\n", *kept])
    card.save(out / CARD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", choices=list(TRAINED), default="lora", help="what learns")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--length", type=int, default=256, help="tokens per block")
    parser.add_argument("--batch", type=int, default=2, help="blocks per step")
    parser.add_argument("--learning-rate", type=float, help="of adapters or weights; by default 3e-3 and 1e-4")
    parser.add_argument("--gate-learning-rate", type=float, default=GATE_LEARNING_RATE)
    parser.add_argument("--eval-blocks", type=int, default=24, help="held-out blocks that the loss is measured on")
    parser.add_argument("--plot", type=Path, help="write a picture of the gates here")
    parser.add_argument("--report-to", default="none", help="where losses and gates go, such as tensorboard")
    args = parser.parse_args()
    set_seed(0)

    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
    # float32: a gate stored in bfloat16 does not move by small steps. On a GPU pass bf16=True to TrainingArguments,
    # which keeps float32 weights and computes in bfloat16.
    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True, dtype=torch.float32)
    model = make_trainable(model, args.train)
    train, held_out = (blocks(tokenizer, texts, args.length) for texts in documents())

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.out / "trainer"),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            per_device_eval_batch_size=args.batch,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, args.steps // 10),
            logging_steps=max(1, args.steps // 8),
            save_strategy="no",
            report_to=args.report_to,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=train,
        eval_dataset=held_out[: args.eval_blocks],
        optimizers=(
            optimizer(model, args.learning_rate or LEARNING_RATES.get(args.train), args.gate_learning_rate),
            None,  # the schedule: Trainer makes the one that its arguments name
        ),
    )
    if GateCallback is not None:
        trainer.add_callback(GateCallback(trainer))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    if args.train == "lora":
        model = model.merge_and_unload()  # a plain Nexus model again
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)

    gates = {name: gate.item() for name, gate in model.gates().items()}
    print(f"{len(gates)} gates, the widest at {max(map(abs, gates.values()), default=0.0):.4f}")
    print(f"held-out loss {before:.4f} -> {after:.4f} nats/token")
    result = {"trained": args.train, "steps": args.steps, "loss_before": before, "loss_after": after, "gates": gates}
    (args.out / "finetune.json").write_text(json.dumps(result, indent=2) + "\n")
    trained = (
        f"{TRAINED[args.train].format(gates=len(gates))}, for {args.steps} steps of {args.batch} x {args.length} "
        "tokens of Python's documentation. In this one run the loss on held-out documents, "
        f"{len(trainer.eval_dataset)} x {args.length} tokens, went from {before:.4f} to {after:.4f} nats per token."
    )
    write_card(args.model, args.out, trained)
    if args.plot and gates:
        plot_gates(gates, trainer.state.log_history, args.plot)


if __name__ == "__main__":
    main()
