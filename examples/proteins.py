"""
Train an encoder to fill in masked amino acids, on a FASTA file of proteins.

    python examples/proteins.py OUT_FOLDER [--fasta FILE] [--model FOLDER] [--order 2] [--steps 300]
    nexus inspect OUT_FOLDER "MKTAYIAKQRQISFVKSHFSRQ"

--model goes on with an encoder that there is: ESM-2, converted by `nexus convert`, or what this script wrote. Without
it a small one is made.

Without --fasta the sequences are made up, and no proteins: a stretch of random amino acids comes twice in each, so that
what is masked in the one can be found in the other. They are written to OUT_FOLDER/made_up.fasta.
"""

import argparse
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from nexus_transformers import NexusConfig, NexusForMaskedLM

ACIDS = "LAGVSERTIDPKQNFYMHWCXBUZO"  # the 20 common ones first
SPECIAL = ["<cls>", "<pad>", "<eos>", "<unk>"]


def made_up(count: int) -> list[str]:
    def stretch(least: int, most: int) -> str:
        return "".join(random.choices(ACIDS[:20], k=random.randint(least, most)))

    repeats = [stretch(8, 12) for _ in range(count)]
    return [stretch(0, 4) + repeat + stretch(2, 6) + repeat + stretch(0, 4) for repeat in repeats]


def read_fasta(file: Path) -> list[str]:
    """The sequences. A line that begins with ">" names the one that follows, on one line or several."""
    records = ("\n" + file.read_text()).split("\n>")[1:]
    return [sequence for record in records if (sequence := "".join(record.split("\n")[1:]).replace(" ", "").upper())]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each amino acid, in the order of ESM-2."""
    tokens = [*SPECIAL, *ACIDS, "<mask>"]
    letters = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    ends = [(token, tokens.index(token)) for token in ("<cls>", "<eos>")]
    letters.post_processor = processors.TemplateProcessing(single="<cls> $A <eos>", special_tokens=ends)
    names = {f"{name}_token": f"<{name}>" for name in ("cls", "pad", "eos", "unk", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=letters, **names)


def make_model(tokenizer: PreTrainedTokenizerFast, order: int) -> NexusForMaskedLM:
    config = NexusConfig(
        is_causal=False,
        attention_order=[order, 1],
        num_layers=2,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        mask_token_id=tokenizer.mask_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return NexusForMaskedLM(config)


@torch.no_grad()
def accuracy(model: NexusForMaskedLM, rows: list[dict], collator: DataCollatorForLanguageModeling) -> float:
    """Share of the masked amino acids that are guessed right."""
    model.eval()
    set_seed(0)  # the same ones are masked before and after
    batch = collator(rows).to(model.device)
    labels = batch.pop("labels")
    masked = (batch["input_ids"] == collator.tokenizer.mask_token_id) & (labels != -100)
    return (model(**batch).logits.argmax(-1) == labels)[masked].float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fasta", type=Path, help="proteins; by default made-up sequences")
    parser.add_argument("--model", help="an encoder to go on with; by default a small new one")
    parser.add_argument("--order", type=int, default=2, help="attention order of the first layer of a new one")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32, help="sequences per step")
    parser.add_argument("--length", type=int, default=256, help="longer sequences are cut")
    parser.add_argument("--learning-rate", type=float, help="by default 3e-3, and 1e-4 with --model")
    args = parser.parse_args()
    set_seed(0)

    args.out.mkdir(parents=True, exist_ok=True)
    if args.fasta is None:
        args.fasta = args.out / "made_up.fasta"
        args.fasta.write_text("".join(f">{number}\n{each}\n" for number, each in enumerate(made_up(4096))))
    sequences = read_fasta(args.fasta)
    if len(sequences) < 2:
        parser.error(f"{args.fasta}: has {len(sequences)} sequences; give at least 2.")
    if args.model is None:
        tokenizer = make_tokenizer()
        model = make_model(tokenizer, args.order)
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
        model = AutoModelForMaskedLM.from_pretrained(args.model, trust_remote_code=True, dtype=torch.float32)
    random.shuffle(sequences)
    encoded = tokenizer(sequences, truncation=True, max_length=args.length)
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in encoded["input_ids"]]
    held_out, train = rows[: max(1, len(rows) // 10)][:256], rows[max(1, len(rows) // 10) :]

    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.out / "trainer"),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            learning_rate=args.learning_rate or (3e-3 if args.model is None else 1e-4),
            lr_scheduler_type="cosine",
            warmup_steps=max(1, args.steps // 10),
            logging_steps=max(1, args.steps // 6),
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=train,
        data_collator=collator,
    )
    before = accuracy(model, held_out, collator)
    trainer.train()
    after = accuracy(model, held_out, collator)
    print(f"masked amino acids guessed right, of {len(held_out)} held-out sequences: {before:.3f} -> {after:.3f}")
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
