"""
Train one nested layer to find the word that followed this one before. One standard layer does not learn it.

    python examples/induction.py OUT_FOLDER [--order 2] [--steps 800]
    nexus inspect OUT_FOLDER "red cat blue dog green owl blue"

A sequence is two to eight pairs of words, all different, and then the same pairs in another order; the loss is on the
second word of a pair that comes again. To answer, "blue" has to find the token *after* its earlier self: two hops, from
"dog" to the "blue" before it and from the second "blue" to "dog". With --order 1 the accuracy stays low.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nexus_transformers import NexusConfig, NexusForCausalLM

WORDS = (
    "red blue green black white pink gold gray brown teal cat dog owl fox bear wolf hare mole crow frog "
    "sun moon rain snow wind fog hail dew ice mist oak elm ash fir yew fig plum pear rose fern"
).split()
MOST_PAIRS = 8


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(("<|pad|>", "<|unknown|>", "<|end|>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<|pad|>", unk_token="<|unknown|>", eos_token="<|end|>"
    )


def sequences(count: int, pairs: int, first_word: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, (count, 4 * pairs) each; labels are -100 but at the second words of the pairs that come again."""
    words = torch.rand(count, len(WORDS)).argsort(1)[:, : 2 * pairs].view(count, pairs, 2) + first_word
    order = torch.rand(count, pairs).argsort(1)[..., None].expand(-1, -1, 2)
    ids = torch.cat((words, words.gather(1, order)), dim=1).flatten(1)
    labels = ids.clone()
    labels[:, : 2 * pairs] = -100
    labels[:, ::2] = -100
    return ids, labels


@torch.no_grad()
def accuracy(model: NexusForCausalLM, first_word: int) -> float:
    ids, labels = sequences(256, MOST_PAIRS, first_word)
    guesses = model(ids).logits[:, :-1].argmax(-1)
    asked = labels[:, 1:] != -100
    return (guesses == labels[:, 1:])[asked].float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--order", type=int, default=2)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    args = parser.parse_args()
    torch.manual_seed(0)

    words = tokenizer()
    first_word = words.convert_tokens_to_ids(WORDS[0])
    config = NexusConfig(
        attention_order=args.order,
        num_layers=1,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        vocab_size=len(words),
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model = NexusForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps)
    for step in range(args.steps):
        # Many pairs first: begun with two or three, it settles for guessing among them.
        pairs = MOST_PAIRS if step < args.steps // 2 else int(torch.randint(2, MOST_PAIRS + 1, ()))
        ids, labels = sequences(64, pairs, first_word)
        loss = model(ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % max(1, args.steps // 6) == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    print(f"accuracy {accuracy(model.eval(), first_word):.3f} on new sequences; chance is {1 / len(WORDS):.3f}")
    model.save_pretrained(args.out)
    words.save_pretrained(args.out)


if __name__ == "__main__":
    main()
