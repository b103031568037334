"""How it is measured: one run of each task, runs interleaved with Llama's, ratios with their spread, peak memory."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache, PreTrainedModel, StaticCache

from .speed_cases import TRAINING, Case

DECODED = 16  # tokens per run: enough that the timer and the crop in between do not show
MOST_ROUNDS = 31


@dataclass
class Runner:
    """A task that can be run again and again: `prepare` untimed, then `run`. `cache` is that of decoding."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    cache: object | None = None


def runner(model: PreTrainedModel, case: Case) -> Runner:
    """What the case asks of this model."""
    ids = torch.randint(1, model.config.vocab_size, (case.batch, case.length), device=model.device)
    forward = compiled(model) if case.compiled else model
    if case.task in TRAINING:
        return training_step(model.train(), forward, ids, checkpointed=case.task == "train checkpointed")
    model.eval()
    if case.task == "prefill":
        return Runner(torch.no_grad()(lambda: forward(ids, use_cache=not case.compiled, logits_to_keep=1)))
    return decoding(model, forward, ids, static=case.compiled)


def compiled(model: PreTrainedModel) -> Callable:
    # All variants run the same code objects, each with guards of its own.
    torch._dynamo.config.recompile_limit = 64
    # CUDA graphs, without which decoding on a GPU waits for the host; they mean nothing on a CPU.
    return torch.compile(model, fullgraph=True, mode="reduce-overhead" if model.device.type == "cuda" else None)


def training_step(model: PreTrainedModel, forward: Callable, ids: torch.Tensor, checkpointed: bool) -> Runner:
    switch = "enable" if checkpointed else "disable"
    # The new name where there is one: the old one warns.
    getattr(model, f"activation_checkpointing_{switch}", getattr(model, f"gradient_checkpointing_{switch}"))()
    return Runner(
        run=lambda: forward(ids, labels=ids, use_cache=False).loss.backward(),
        prepare=lambda: model.zero_grad(set_to_none=True),
    )


@torch.no_grad()
def decoding(model: PreTrainedModel, forward: Callable, ids: torch.Tensor, static: bool) -> Runner:
    """Steps of one token from a full cache, which is cut back to its prompt before each run."""
    length = ids.shape[1]
    cache = StaticCache(model.config, max_cache_len=length + DECODED) if static else DynamicCache(config=model.config)
    if not static:
        cache.activate_past_recording()  # else what a window has let go of could not be cut back to
    model(ids, past_key_values=cache, logits_to_keep=1)

    def prepare():
        if static:
            for layer in cache.layers:
                layer.cumulative_length.fill_(length)
        else:
            cache.crop(min(0, length - cache.get_seq_length()))

    @torch.no_grad()
    def run():
        for _ in range(DECODED):
            forward(ids[:, :1], past_key_values=cache, logits_to_keep=1)

    return Runner(run, prepare, cache)


@dataclass
class Timing:
    """Seconds per run of one rival, of the Llama beside it, and their ratios, one per round."""

    seconds: list[float] = field(default_factory=list)
    llama_seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def add(self, before: float, seconds: float, after: float) -> None:
        """A run between two of Llama's: their mean takes a steady drift of the machine out of the ratio."""
        self.seconds.append(seconds)
        self.llama_seconds.append((before + after) / 2)
        self.ratios.append(seconds / self.llama_seconds[-1])


def interleave(
    llama: Runner,
    rivals: dict[str, Runner],
    device: str,
    budget: float,
    min_rounds: int = 3,
    min_seconds: float | None = None,
) -> dict[str, Timing]:
    """
    Rounds of Llama, a rival, Llama, the next rival, ..., Llama, in another order each round, until about `budget`
    seconds are spent. A short task is run several times per measurement, for about `min_seconds`, by default 0.1 or
    less where the budget is small.
    """
    if min_seconds is None:
        min_seconds = min(0.1, budget / 50)
    seconds = stopwatch(llama, device, 1)  # warm up: compile, fill allocators, and find how often to run it
    for each in rivals.values():
        stopwatch(each, device, 1)
    if seconds < 10:  # what takes so long is not run a second time before the rounds
        seconds = stopwatch(llama, device, 1)
    repeats = max(1, round(min_seconds / seconds))
    timings = {name: Timing() for name in rivals}
    gc.collect()
    gc.freeze()  # what is there by now: going through it costs half a second every time
    names, start, rounds = list(rivals), time.perf_counter(), 0
    while True:
        gc.collect()
        before = stopwatch(llama, device, repeats)
        for name in names:
            seconds = stopwatch(rivals[name], device, repeats)
            after = stopwatch(llama, device, repeats)
            timings[name].add(before, seconds, after)
            before = after
        rounds += 1
        names = names[1:] + names[:1]
        spent = time.perf_counter() - start
        if rounds >= MOST_ROUNDS or (rounds >= min_rounds and spent + spent / rounds > budget):
            gc.unfreeze()
            return timings


def stopwatch(runner: Runner, device: str, repeats: int) -> float:
    """Mean seconds of one run, the device's queue empty before and after."""
    seconds = 0.0
    gc.disable()
    try:
        for _ in range(repeats):
            runner.prepare()
            synchronize(device)
            start = time.perf_counter()
            runner.run()
            synchronize(device)
            seconds += time.perf_counter() - start
    finally:
        gc.enable()
    return seconds / repeats


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    values = list(values)
    if len(values) == 1:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def peak_bytes(runner: Runner, device: str) -> int:
    """
    The most memory that tensors held at once during one run, above what was held before it: activations, gradients and
    the kernels' own buffers, without weights. It does not depend on the other models in the process.

    On CUDA by the allocator's own statistics. On a CPU by PyTorch's record of every allocation and release
    (`profile_memory`), added up in order: exact and repeatable, where the resident size of a process depends on when
    the C library gives memory back. Libraries' private buffers (oneDNN, MKL) are in neither.
    """
    runner.prepare()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        runner.run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as record:
        runner.run()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def held_by(cache) -> int:
    """Bytes of the keys and values in a cache; room that is not used yet counts too."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
