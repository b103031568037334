"""
Open the gates of a converted model with Trainer, everything else frozen, and see what that buys.

    python examples/finetune_gates.py MODEL_FOLDER OUT_FOLDER [--steps 40] [--plot gates.png]

MODEL_FOLDER is what `nexus convert` wrote (or a Hub id). The text is Python's own documentation, which every Python
carries; replace `documents()` by yours. Held-out documents are never trained on.
"""

import argparse
import json
import random
from pathlib import Path
from pydoc_data.topics import topics

import torch
from huggingface_hub import ModelCard
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.utils import cached_file


def documents() -> tuple[list[str], list[str]]:
    """Training and held-out documents, split by document."""
    texts = [topics[name] for name in sorted(topics)]
    random.Random(0).shuffle(texts)
    return texts[len(texts) // 5 :], texts[: len(texts) // 5]


def blocks(tokenizer, texts: list[str], length: int, limit: int) -> list[dict]:
    """The texts joined and cut into blocks of `length` tokens, at most `limit` of them."""
    ids = tokenizer((tokenizer.eos_token or "\n\n").join(texts))["input_ids"]
    starts = range(0, min(len(ids) - length, limit * length), length)
    return [{"input_ids": ids[i : i + length], "labels": ids[i : i + length]} for i in starts]


def show_gates(gates: dict[str, float], console: Console) -> None:
    """One bar per gate, in the order of the layers."""
    largest = max(abs(value) for value in gates.values()) or 1.0
    for name, value in gates.items():
        layer, branch = name.split(".")[2], name.split(".")[-1]
        bar = "█" * round(30 * abs(value) / largest)
        console.print(f"  layer {layer:>2} {branch:<13} {value:+.4f} {bar}", highlight=False)


def plot_gates(gates: dict[str, float], losses: tuple[float, float], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for offset, (branch, colour) in enumerate((("query", "#3b6fb6"), ("key", "#e0812c"))):
        values = {int(name.split(".")[2]): value for name, value in gates.items() if f".{branch}_gate_1" in name}
        axes.bar([x + 0.4 * offset - 0.2 for x in values], values.values(), width=0.4, color=colour, label=branch)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="layer", ylabel="gate (0 closed, 1 fully nested)")
    axes.set_title(f"Gates after training them alone: held-out loss {losses[0]:.4f} → {losses[1]:.4f} nats/token")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def write_card(model: str, out: Path, title: str, trained: str) -> None:
    """The model's own card with the new title, and with what was trained in place of what was checked before that."""
    file = cached_file(model, "README.md", _raise_exceptions_for_missing_entries=False)
    if file is None:
        return
    card = ModelCard.load(file)
    card.data.model_name = card.data.eval_results = None  # figures of the model before
    _, *sections = card.text.split("\n## ")
    kept = [section for section in sections if not section.startswith("What was checked")]
    card.text = "\n## ".join([f"# {title}\n\n{trained}\n", *kept])
    card.save(out / "README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--length", type=int, default=256, help="tokens per block")
    parser.add_argument("--batch", type=int, default=2, help="blocks per step")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="3e-3 on text, 3e-2 on short tasks")
    parser.add_argument("--eval-blocks", type=int, default=24, help="held-out blocks that the loss is measured on")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    console = Console()
    set_seed(0)

    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
    # float32: stored in bf16 a gate of 0.05 cannot move by less than 0.0002, so small steps are lost. For speed on a
    # GPU pass bf16=True to TrainingArguments, which keeps these weights and computes in bf16.
    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True, dtype=torch.float32)
    model.freeze_all_but_gates()
    train, held_out = (blocks(tokenizer, texts, args.length, 10**6) for texts in documents())

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.out / "trainer"),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            per_device_eval_batch_size=args.batch,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, args.steps // 10),
            logging_steps=max(1, args.steps // 8),
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=train,
        eval_dataset=held_out[: args.eval_blocks],
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)

    gates = {name: gate.item() for name, gate in model.gates().items()}
    show_gates(gates, console)
    console.print(f"held-out loss {before:.4f} -> {after:.4f} nats/token, {len(gates)} parameters trained")
    result = {"loss_before": before, "loss_after": after, "steps": args.steps, "gates": gates}
    (args.out / "finetune_gates.json").write_text(json.dumps(result, indent=2) + "\n")
    trained = (
        f"Its {len(gates)} gates alone were trained, for {args.steps} steps of {args.batch} x {args.length} tokens of "
        f"Python's documentation; all other weights are those it had. In this one run the loss on held-out documents, "
        f"{len(trainer.eval_dataset)} x {args.length} tokens, went from {before:.4f} to {after:.4f} nats per token. "
        "`finetune_gates.json` has every gate."
    )
    write_card(args.model, args.out, f"{Path(args.model).resolve().name}, gates trained", trained)
    if args.plot:
        plot_gates(gates, (before, after), args.plot)


if __name__ == "__main__":
    main()
