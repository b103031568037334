"""What is measured: shapes, the variants of Nexus beside Llama, and the cases of each preset."""

from dataclasses import asdict, dataclass, replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from common import costs
from nexus_transformers import NexusConfig, NexusForCausalLM

TRAINING = ("train", "train checkpointed")
LLAMA = "llama"
CONTROL = "llama again"  # a second Llama, measured as if it were a rival: how far from 1 noise alone gets
WINDOW = "order 2, window 64"
CLOSED = "closed gates, skipped"  # by `skip_closed_levels`

VARIANTS = {
    CONTROL: None,
    "order 1": {"attention_order": 1},
    "order 2": {"attention_order": 2},
    "order 3": {"attention_order": 3},
    "order 2, gates": {"attention_order": 2, "inner_gate": True},
    "order 2, queries only": {"attention_order": 2, "refine_key": False},
    "order 2, W_O": {"attention_order": 2, "inner_output_projection": True},
    "separate": {"attention_order": 2, "inner_attention": "separate"},
    "self": {"attention_order": 2, "inner_attention": "self"},
    "first layer only": {"attention_order": [2]},  # filled up with order 1
    WINDOW: {"attention_order": 2, "inner_window": 64},
    CLOSED: {"attention_order": 2, "inner_gate": True},
}
FEW = (CONTROL, "order 1", "order 2", "order 3", "order 2, queries only", "first layer only")
BRIEF = (CONTROL, "order 2", "order 3")  # for the larger shapes
TRAINED = (CONTROL, "order 1", "order 2", "first layer only")  # what the targets of training name
WINDOWED = ("order 2", WINDOW)  # long cases: no second Llama
COMPILED = ("order 1", "order 2", "first layer only")  # compiling takes longer than measuring


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder. A *stack* is a few layers under a small vocabulary: the cost of layers, undiluted."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 8192

    def stack(self, layers: int) -> "Shape":
        return replace(self, num_layers=layers, vocab_size=4096, tie_word_embeddings=True)

    def nexus(self, nesting: dict, **fields) -> NexusConfig:
        """With the orders of the first layers given, the others are 1."""
        order = nesting["attention_order"]
        if isinstance(order, list):
            nesting = nesting | {"attention_order": order + [1] * (self.num_layers - len(order))}
        return NexusConfig(**asdict(self) | fields | nesting)


SMOLLM2 = Shape(576, 1536, 30, 9, 3, 49152)
# Pythia's width, depth, heads and parameters in the form of a Llama: 3 * 2048 for the 2 * 3072 of a plain MLP.
PYTHIA = Shape(768, 2048, 12, 12, 12, 50304, tie_word_embeddings=False)
QWEN = Shape(1536, 8960, 28, 12, 2, 151936)
SHAPES = {
    "smollm2-135m": SMOLLM2,
    "smollm2-135m stack": SMOLLM2.stack(4),
    "pythia-160m stack": PYTHIA.stack(4),
    "qwen2.5-1.5b stack": QWEN.stack(2),
}
TOY = Shape(32, 48, 2, 4, 2, 61)  # in place of every shape, to test the benchmark itself


@dataclass(frozen=True)
class Case:
    """
    One thing that every variant does in turn with Llama.

    Attributes:
        task: "prefill" fills an empty cache and gives the last position's logits, as `generate` does (compiled: without
            a cache). "decode" continues by one token at a time. "train" is a forward and a backward pass with the loss
            over all positions; "train checkpointed" the same with activation checkpointing. The optimiser's part, equal
            for all, is left out.
        length: Tokens per sequence; of decoding, those in the cache when it begins.
        weight: Share of time relative to other cases.
        judged: Whether the targets are judged by it.
        rounds: The fewest rounds, over all processes, however long they take.
    """

    shape: str
    task: str
    batch: int
    length: int
    dtype: str = "float32"
    compiled: bool = False
    variants: tuple[str, ...] = FEW
    weight: float = 1.0
    judged: bool = False
    rounds: int = 3

    @property
    def label(self) -> str:
        compiled = ", compiled" if self.compiled else ""
        return f"{self.shape}, {self.task} {self.batch} x {self.length}, {self.dtype}{compiled}"

    def flops(self, config: PreTrainedConfig, attention: str) -> dict[str, int]:
        """What costs.py counts of it, but for decoding."""
        training = self.task in TRAINING
        kind = {"logits": None if training else 1, "training": training, "attention": attention}
        return costs.flops(config, self.batch, self.length, checkpointed=self.task == "train checkpointed", **kind)


def cases(preset: str) -> list[Case]:
    """
    Of "quick" (none compiled: that takes minutes), "targets" (by which Nexus is judged) or "wide": other shapes,
    lengths and batches, compiled models, bf16. Cases that share models are adjacent.
    """
    whole, stack, everything = "smollm2-135m", "smollm2-135m stack", tuple(VARIANTS)
    if preset == "quick":
        return [
            Case(whole, "prefill", 1, 128, variants=everything, judged=True),
            Case(whole, "decode", 1, 128, variants=everything, judged=True),
            Case(stack, "train", 1, 256, variants=TRAINED),
            Case(stack, "train checkpointed", 1, 256),
        ]
    if preset == "targets":
        return [
            Case(whole, "prefill", 1, 512, variants=(*FEW, CLOSED), judged=True, rounds=9),
            Case(whole, "decode", 1, 1024, variants=(*FEW, CLOSED), judged=True, rounds=9),
            # a round of training scatters by 3 %: only many of them tell
            Case(whole, "train", 1, 512, variants=TRAINED, judged=True, rounds=6),
            Case(whole, "train checkpointed", 1, 512, variants=(CONTROL, "order 2"), judged=True, rounds=6),
            Case(whole, "prefill", 1, 2048, variants=WINDOWED, judged=True, rounds=6),
            Case(whole, "decode", 1, 4096, variants=WINDOWED, judged=True, rounds=6),
            Case(whole, "prefill", 1, 4096, variants=(WINDOW,), judged=True, rounds=3),
            Case(whole, "train", 1, 2048, variants=(WINDOW,), judged=True, rounds=3),
            Case(whole, "prefill", 1, 2048, "bfloat16", variants=WINDOWED, judged=True, rounds=6),
        ]
    chosen = [
        Case(whole, "prefill", 8, 128, variants=everything, weight=5),
        Case(whole, "decode", 1, 128, variants=everything, weight=5),
        Case(whole, "decode", 8, 1024, variants=FEW, weight=5),
    ]
    for task, length in (("prefill", 512), ("decode", 1024), ("train", 512), ("train checkpointed", 512)):
        chosen.append(Case(stack, task, 1, length, compiled=True, variants=COMPILED))
    for compiled in (False, True):
        variants = COMPILED if compiled else FEW
        for task, length in (("prefill", 512), ("decode", 1024), ("train", 512)):
            chosen.append(Case(stack, task, 1, length, "bfloat16", compiled, variants))
    for shape, variants in ((stack, FEW), ("pythia-160m stack", BRIEF), ("qwen2.5-1.5b stack", BRIEF)):
        chosen += [Case(shape, "prefill", 1, length, variants=variants) for length in (128, 512, 1024, 2048, 4096)]
        # the larger shapes take long
        for length in (128, 512) if shape == stack else (128,):
            chosen += [Case(shape, "prefill", 8, length, variants=variants)]
        chosen += [Case(shape, "decode", 1, length, variants=variants) for length in (128, 1024, 4096)]
        chosen += [Case(shape, "decode", 8, 1024, variants=variants)]
        chosen += [Case(shape, "train", 1, length, variants=variants) for length in (128, 512, 1024)]
        for length in (128, 512, 1024) if shape == stack else (512,):
            chosen += [Case(shape, "train checkpointed", 1, length, variants=variants)]
        if shape == stack:
            chosen += [Case(shape, task, 8, 128, variants=variants) for task in ("train", "train checkpointed")]
    return chosen


def build(
    shape: Shape, nestings: dict[str, dict | None], dtype: torch.dtype, device: str
) -> dict[str, PreTrainedModel]:
    """
    Llama, and its rivals by the name of their config fields (None: Llama once more). All have the same weights, in
    memory once; gates are closed. Only "separate" has more: its inner attentions start random.
    """
    torch.manual_seed(0)
    fields = {"rms_norm_eps": 1e-5, "bos_token_id": None, "eos_token_id": None}
    llama = LlamaForCausalLM(LlamaConfig(**asdict(shape) | fields, num_hidden_layers=shape.num_layers))
    llama.to(device, dtype)
    models, weights = {LLAMA: llama}, llama.state_dict(keep_vars=True)
    for name, nesting in nestings.items():
        with no_init_weights():
            if nesting is None:
                model = LlamaForCausalLM(llama.config)
            else:
                model = NexusForCausalLM(shape.nexus(nesting, **fields))
        model.to(device, dtype)
        missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
        assert not unexpected and all(".inner_" in key for key in missing), (name, missing, unexpected)
        for key in missing:
            torch.nn.init.normal_(model.get_parameter(key), std=0.0 if "_gate_" in key else 0.02)
        if name == CLOSED:
            model.eval().skip_closed_levels()
        models[name] = model
    return models
