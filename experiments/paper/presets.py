"""
The models of the paper: four Pythia shapes that it trained from scratch, two Qwen2.5 base models that it retrofitted;
and its arms, the kinds of nested attention that its tables compare.

`python -m experiments.paper.presets ARM` prints the options of `nexus convert` that make an arm.

Shapes and recipe are those of the Pythia suite itself, from the configurations that its models were trained with
(github.com/EleutherAI/pythia, models/*/pythia-*.yml). The paper trains "in the same setting" and states no tokens: the
budget here is our choice, and the README says so.
"""

import math
import sys
from dataclasses import dataclass

# What the paper's attention has unless an arm says otherwise: no product, scale or gate between levels.
PAPER = {
    "attention_order": 2,
    "inner_attention": "shared",
    "refine_query": True,
    "refine_key": True,
    "refine_value": False,
    "inner_output_projection": False,
    "inner_scale": False,
    "inner_gate": False,
}
ARMS = {  # the rows of Table 2, the paper's written definition, and our own retrofit: fields of a NexusConfig
    "standard": PAPER | {"attention_order": 1},  # "Baseline"
    "nexus-q": PAPER | {"inner_attention": "separate", "refine_key": False},
    "nexus-qk": PAPER | {"inner_attention": "separate"},  # also the retrofit of its section 4.4
    "nexus-qkv": PAPER | {"inner_attention": "separate", "refine_value": True},
    "nexus-qk-shared": PAPER,  # Eq. 12: its main runs
    "nexus-recursive": PAPER | {"attention_order": 3},
    "eq7": PAPER | {"inner_attention": "self"},  # Eq. 7 to 9: no row of a table
    "ours": PAPER | {"inner_scale": True, "inner_gate": True},  # starts as its source
}
MAIN = {"pretraining": "nexus-qk-shared", "reasoning": "nexus-qk"}  # what Tables 1 and 3 call Nexus, see the README


def converter_options(arm: str) -> list[str]:
    """Those of `nexus convert`."""
    fields = ARMS[arm]
    branches = [branch for branch in ("query", "key", "value") if fields[f"refine_{branch}"]]
    options = ["--order", str(fields["attention_order"]), "--inner-attention", fields["inner_attention"]]
    options += ["--refine", ",".join(branches)]
    options += [] if fields["inner_scale"] else ["--no-inner-scale"]
    return options if fields["inner_gate"] else [*options, "--no-gate"]


@dataclass(frozen=True)
class Pretraining:
    """
    A model to train from scratch.

    Args:
        learning_rate: Peak. For Pythia 1B the configuration says 2.5e-4, the suite's own table 3.0e-4.
        parameters: As published, biases and both embeddings included.
        batch: Sequences per GPU and pass, a guess for 80 GB; the recipe does not depend on it.
        vocab_size: Rows of the embedding; None for as many as the tokenizer has.
    """

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    learning_rate: float
    parameters: int | None
    batch: int
    vocab_size: int | None = 50304
    length: int = 2048
    sequences: int = 1024  # per step: 2,097,152 tokens
    steps: int = 7150  # 15.0e9 tokens, 1/20 of the suite's 143,000 steps: see the README

    def config(self, arm: str) -> dict:
        """The fields of a NexusConfig: this GPT-NeoX model with the attention of an arm."""
        return ARMS[arm] | {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": 4 * self.hidden_size,
            "num_layers": self.num_layers,
            "num_attention_heads": self.num_attention_heads,
            "max_position_embeddings": self.length,
            "hidden_act": "gelu",
            "mlp_gated": False,
            "mlp_bias": True,
            "attention_bias": True,
            "norm_type": "layernorm",
            "rms_norm_eps": 1e-5,
            "parallel_residual": True,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
            "bos_token_id": 0,
            "eos_token_id": 0,
            "initializer_range": math.sqrt(2 / (5 * self.hidden_size)),  # GPT-NeoX's "small_init"
        }

    @property
    def output_std(self) -> float:
        """Standard deviation of what writes to the residual stream, W_O and the MLP's last: GPT-NeoX's "wang_init"."""
        return 2 / (self.num_layers * math.sqrt(self.hidden_size))

    @property
    def training(self) -> dict:
        """Defaults of TrainingArguments: the optimiser and the schedule of the Pythia suite."""
        return {
            "max_steps": self.steps,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "warmup_steps": 0.01,  # of the steps
            "adam_beta1": 0.9,
            "adam_beta2": 0.95,
            "adam_epsilon": 1e-8,
            "weight_decay": 0.1,
            "max_grad_norm": 1.0,
            "per_device_train_batch_size": self.batch,
            "seed": 1234,  # the suite's
        }


@dataclass(frozen=True)
class Retrofit:
    """
    A pretrained model whose attention is replaced, and which is then fine-tuned.

    Args:
        source: The Hub id that `nexus convert` reads.
        shape: Of the source, for estimates only: the converter reads the source's own config.
        training: Defaults of SFTConfig.
    """

    source: str
    shape: dict
    training: dict
    sequences: int = 16  # per step: a choice of ours


# The recipe of OpenR1-Qwen-7B (huggingface.co/open-r1/OpenR1-Qwen-7B): a published SFT of a Qwen2.5 model of this size
# on long solutions in mathematics. The paper does not name what it fine-tuned on.
OPENR1 = {
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,  # of the steps
    "num_train_epochs": 3,
    "max_length": 32768,
    "per_device_train_batch_size": 1,
    "weight_decay": 0.0,
}


def _qwen(hidden: int, intermediate: int, heads: int, vocabulary: int, key_value_heads: int, tied: bool) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_layers": 28,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


PRETRAINING = {
    "pythia-70m": Pretraining(512, 6, 8, 1e-3, 70_426_624, batch=32),
    "pythia-160m": Pretraining(768, 12, 12, 6e-4, 162_322_944, batch=32),
    "pythia-410m": Pretraining(1024, 24, 16, 3e-4, 405_334_016, batch=16),
    "pythia-1b": Pretraining(2048, 16, 8, 2.5e-4, 1_011_781_632, batch=16),
    # The same with everything small, for a try-out on any machine.
    "toy": Pretraining(32, 2, 4, 3e-3, None, batch=2, vocab_size=None, length=64, sequences=8, steps=20),
}
TOY_TRAINING = {"learning_rate": 1e-3, "max_steps": 6, "max_length": 128, "per_device_train_batch_size": 2}
RETROFIT = {
    "qwen2.5-1.5b": Retrofit("Qwen/Qwen2.5-1.5B", _qwen(1536, 8960, 12, 151936, 2, tied=True), OPENR1),
    "qwen2.5-7b": Retrofit("Qwen/Qwen2.5-7B", _qwen(3584, 18944, 28, 152064, 4, tied=False), OPENR1),
    "toy": Retrofit("", {}, TOY_TRAINING, sequences=4),  # of any model, for a try-out
}


if __name__ == "__main__":
    if sys.argv[1:] not in [[arm] for arm in ARMS]:
        sys.exit(f"presets: name one arm: {', '.join(ARMS)}.")
    print(*converter_options(sys.argv[1]))
