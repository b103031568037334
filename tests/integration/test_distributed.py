"""Data-parallel, sharded and tensor-parallel training on two real processes (gloo) against one process."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from arms import ARMS, build
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

import checkpoints
import nexus_transformers
from isolated import run_isolated
from nexus_transformers import NexusConfig, NexusForCausalLM, NexusForMaskedLM
from nexus_transformers.conversion_scripts.checkpoint.files import CODE_FILES
from nexus_transformers.gate_callback import short_name

ROOT = Path(nexus_transformers.__file__).parent
EXAMPLE = ROOT / "examples" / "pretrain_distributed.py"
WORKER = Path(__file__).parent / "distributed_worker.py"
TOLERANCE = 1e-5  # see `worst`
LAYERS = 2
SHARDED_DIM = {  # of the weights, by tensor parallelism
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"), 0),
    **dict.fromkeys(("o_proj", "down_proj"), 1),
}


def launch(command: list, folder: Path, timeout: int = 500) -> str:
    """Runs a command whose processes cannot outlive it, and returns what it printed."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONFAULTHANDLER": "1",  # a crash in torch says where
        "CUDA_VISIBLE_DEVICES": "",
    }
    process = subprocess.Popen(
        [str(argument) for argument in command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output[-20_000:]
    return output


def run_cases(cases: list[dict], folder: Path) -> dict[str, list[dict]]:
    """Runs all cases on two processes of one torchrun -> the results of rank 0 and of rank 1, by the case's name."""
    (folder / "cases.json").write_text(json.dumps(cases))
    torch.save(batch(), folder / "ids.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, WORKER, folder]
    launch(command, folder)
    names = [case["name"] for case in cases]
    assert len(set(names)) == len(names)
    return {name: [torch.load(folder / f"{name}.{rank}.pt") for rank in range(2)] for name in names}


def batch() -> torch.Tensor:
    return torch.randint(3, 64, (4, 16), generator=torch.Generator().manual_seed(1))


def save_models(folder: Path, models: dict[str, dict]) -> None:
    """Saves tiny random models, name -> changes of the config, to folders of these names."""
    disable_progress_bar()
    for name, changes in models.items():
        build(model_class=model_class(changes), **changes).save_pretrained(folder / name)


def model_class(config: dict) -> type:
    return NexusForCausalLM if config.get("is_causal", True) else NexusForMaskedLM


def single_process(folder: Path, gates_only: bool = False) -> tuple[PreTrainedModel, torch.Tensor, dict]:
    """The model after a backward pass over the whole batch, its loss and its gradients."""
    model = model_class(NexusConfig.from_pretrained(folder).to_dict()).from_pretrained(folder).train()
    if gates_only:
        model.freeze_all_but_gates()
    loss = model(batch(), labels=batch()).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.abs().max() > 0 for gradient in gradients.values()), "a gradient of 0 would prove nothing"
    return model, loss.detach(), gradients


def worst(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> tuple[float, str]:
    """
    The largest difference of any tensor, relative to the largest element of that tensor, and the tensor's name. All
    gates of a model count as one tensor: the gradient of a single one is a sum that may all but cancel.
    """
    assert actual.keys() == expected.keys()
    largest = {}
    for name, tensor in expected.items():
        largest[group(name)] = max(largest.get(group(name), 0.0), tensor.abs().max().item())
    differences = {name: (actual[name] - tensor).abs().max().item() for name, tensor in expected.items()}
    return max((difference / largest[group(name)], name) for name, difference in differences.items())


def group(name: str) -> str:
    return "gates" if ".inner_norm." in name else name


def assert_same(result: dict, loss: torch.Tensor, gradients: dict[str, torch.Tensor], case: str) -> None:
    assert torch.allclose(result["loss"], loss, rtol=TOLERANCE, atol=0), case
    difference = worst(result["gradients"], gradients)
    assert difference[0] < TOLERANCE, (case, difference)


ENCODERS = {
    "encoder": {"is_causal": False, "attention_order": 2, "inner_window": 4},
    "encoder, as ESM-2": {
        "is_causal": False,
        "attention_order": 3,
        "norm_type": "layernorm",
        "mlp_gated": False,
        "attention_bias": True,
        "mlp_bias": True,
        "lm_head_bias": True,
        "lm_head_transform": True,
        "mask_token_id": 3,
        "token_dropout": True,
    },
}
DATA_PARALLEL = ARMS | {
    **ENCODERS,
    "order 1": {"attention_order": 1},
    "no gates": {"attention_order": 2, "inner_gate": False, "tie_word_embeddings": True},
    "norms": {"attention_order": [3, 1], "qk_norm": True},
}


@pytest.mark.slow
def test_data_parallel_training_replicated_and_sharded_trains_the_same(tmp_path):
    """With DDP, and with FSDP2 by torch's own call ("fsdp") and by the plan that Transformers makes of a model."""
    save_models(tmp_path, DATA_PARALLEL)
    kinds = ("ddp", "fsdp", "fsdp_config")
    cases = [{"name": f"{model}.{kind}", "kind": kind, "model": model} for model in DATA_PARALLEL for kind in kinds]
    for model in ARMS:
        cases.append({"name": f"{model}.checkpointing", "kind": "ddp", "model": model, "reentrant": False})
    for kind in ("ddp", "fsdp"):
        case = {"kind": kind, "model": "shared, order 3"}
        for reentrant in (False, True) if kind == "ddp" else (False,):
            cases.append({"name": f"{kind}.gates.{reentrant}", **case, "gates_only": True, "reentrant": reentrant})
        cases.append({"name": f"{kind}.other data", **case, "other_data": True})
    results = run_cases(cases, tmp_path)

    for case in cases:
        name, is_sharded = case["name"], case["kind"] != "ddp"
        model, loss, gradients = single_process(tmp_path / case["model"], case.get("gates_only", False))
        assert (len(gradients) == len(model.gates())) == case.get("gates_only", False)
        shapes = {key: list(parameter.shape) for key, parameter in model.named_parameters()}
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3).step()
        stepped = {key: parameter.detach() for key, parameter in model.named_parameters()}
        assert all(not torch.equal(stepped[key], before[key]) for key in gradients)
        for rank, result in enumerate(results[name]):
            # recomputed layers show that checkpointing was on
            assert result["mlp_calls"] == LAYERS * (1 if case.get("reentrant") is None else 2), name
            if is_sharded:
                layers = {f"model.layers.{layer}" for layer in range(LAYERS)}
                assert layers | {""} <= set(result["wrapped"]), name  # "" is the root
                assert result["not_dtensor"] == [], name
                for key, (rows, *others) in shapes.items():
                    kept = (rows + 1) // 2 if rank == 0 else rows // 2  # a gate of shape (1,) lies on rank 0
                    assert result["local_shapes"][key] == [kept, *others], (name, rank, key)
            logged = {short_name(key): result["stepped"][key].item() for key in model.gates()}
            assert result["logged"] == logged, "GateCallback tells the whole gates on every process"
            assert result["closed"] == [], "a process with an empty part of a gate reads it whole"
            if case.get("other_data"):
                assert worst(result["gradients"], gradients)[0] > 0.1, "the comparison would not notice"
                assert worst(result["stepped"], stepped)[0] > 1e-3, "the comparison would not notice"
            else:
                assert_same(result, loss, gradients, name)
                assert worst(result["stepped"], stepped)[0] < TOLERANCE, name


OLMO2 = {"qk_norm": "across_heads", "norm_position": "post"}
SEPARATE_W_O = {**ARMS["separate QK"], "inner_output_projection": True}
TENSOR_PARALLEL = ARMS | {
    **ENCODERS,
    "order 1": {"attention_order": 1},
    "no gates": {"attention_order": 2, "inner_gate": False, "tie_word_embeddings": True},
    "only queries": {"attention_order": 3, "refine_key": False},
    "multi-head": {
        "num_layers": 2,
        "attention_order": [3, 1],
        "num_key_value_heads": 4,
        "mlp_gated": False,
        "parallel_residual": True,
    },
    "separate, W_O": {**SEPARATE_W_O, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "self, order 3": {**ARMS["self"], "attention_order": 3, "num_key_value_heads": 4},
    **{f"{name}, norms": {**ARMS[name], "qk_norm": True} for name in ("shared, order 3", "separate QKV", "self")},
    **{f"{name}, OLMo 2": {**ARMS[name], **OLMO2} for name in ("shared, order 3", "separate QKV", "self")},
    "separate, W_O, OLMo 2": {**SEPARATE_W_O, **OLMO2},
}


@pytest.mark.slow
def test_tensor_parallelism_shards_every_projection_and_trains_and_generates_the_same(tmp_path):
    save_models(tmp_path, {name: {"num_layers": 1, **changes} for name, changes in TENSOR_PARALLEL.items()})
    cases = [{"name": model, "kind": "tp", "model": model} for model in TENSOR_PARALLEL]
    for model, reentrant in {"shared, order 3, norms": True, "separate QKV": False, "self": True}.items():
        cases.append({"name": f"{model}.again", "kind": "tp", "model": model, "reentrant": reentrant})
    cases.append({"name": "accumulated", "kind": "tp", "model": "self", "accumulated": True})
    # Each process sees half of the heads, so a norm over heads that does not sum its gradient has half of it.
    rules = ["q_norm", "k_norm"]
    cases.append({"name": "unsummed", "kind": "tp", "model": "self, norms", "without_rules": rules})
    results = run_cases(cases, tmp_path)

    for case in cases:
        name = case["name"]
        model, loss, gradients = single_process(tmp_path / case["model"])
        expected = {key: local_shape(key, list(parameter.shape)) for key, parameter in model.named_parameters()}
        del expected["model.embed_tokens.weight"]  # up to the release of Transformers
        if model.config.is_causal:
            arguments = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
            tokens = model.eval().generate(batch()[:2], **arguments)
            assert tokens[:, 16:].unique().numel() > 2, "a constant output would prove nothing"
        for result in results[name]:
            assert {key: result["local_shapes"][key] for key in expected} == expected, name
            assert result["local_shapes"].keys() - expected.keys() == {"model.embed_tokens.weight"}, name
            if name == "unsummed":
                wrong = {
                    key
                    for key, tensor in gradients.items()
                    if worst({key: result["gradients"][key]}, {key: tensor})[0] > 0.1
                }
                assert wrong == {key for key in gradients if key.endswith(("q_norm.weight", "k_norm.weight"))}
                continue
            assert_same(result, loss, gradients, name)
            passes = 2 if {"reentrant", "accumulated"} & case.keys() else 1
            assert result["mlp_calls"] == model.config.num_layers * passes, name
            if model.config.is_causal:
                assert torch.equal(result["tokens"], tokens), name
                assert torch.equal(result["tokens_static"], tokens), name


def local_shape(name: str, shape: list[int]) -> list[int]:
    """The shape of one process's part of a parameter under tensor parallelism."""
    *_, module, kind = name.split(".")
    dim = SHARDED_DIM.get(module)
    if kind == "bias":
        dim = 0 if dim == 0 else None
    return [size // 2 if i == dim else size for i, size in enumerate(shape)]


@pytest.mark.slow
def test_the_pretraining_example_trains_the_same_on_two_processes_as_on_one(tmp_path):
    checkpoints.tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("\n".join(topics[name] for name in sorted(topics)[:12]), encoding="utf-8")
    documented = re.search(r"^ *(torchrun --standalone .*)$", EXAMPLE.read_text(), re.MULTILINE)[1]
    words = {
        "TEXT_FILE": tmp_path / "text.txt",
        "TOKENIZER": tmp_path / "tokenizer",
        f"examples/{EXAMPLE.name}": EXAMPLE,
    }
    config = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_attention_heads": 4}
    options = ["--config", json.dumps(config), "--steps", 6, "--length", 32, "--learning-rate", 0.003]
    two = [(words | {"OUT_FOLDER": tmp_path / "two"}).get(word, word) for word in shlex.split(documented)]
    launch([*two, *options, "--batch", 2, "--checkpointing"], tmp_path)
    one = [sys.executable, EXAMPLE, words["TEXT_FILE"], tmp_path / "one", "--tokenizer", words["TOKENIZER"]]
    launch([*one, *options, "--batch", 4], tmp_path)

    results = [json.loads((tmp_path / name / "pretrain.json").read_text()) for name in ("two", "one")]
    assert [result["processes"] for result in results] == [2, 1]
    losses = [torch.tensor(result["losses"]) for result in results]
    assert losses[0].numel() == 6
    assert losses[0][-1] < losses[0][0]
    weights = [dict(NexusForCausalLM.from_pretrained(tmp_path / name).named_parameters()) for name in ("two", "one")]
    # One process with half of the batch is 2e-2 away in a loss and 0.27 in a weight (relative, as here).
    assert torch.allclose(*losses, rtol=1e-4)
    assert worst(*weights)[0] < 1e-3  # Adam divides by what may be next to nothing


SHARD_AND_SAVE = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from nexus_transformers import NexusForCausalLM

source, out = sys.argv[1:]
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = fully_shard(NexusForCausalLM.from_pretrained(source))
assert type(model).__name__ == "FSDPNexusForCausalLM"
state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
model.save_pretrained(out, state_dict=state)
assert isinstance(model, NexusForCausalLM) and model(torch.arange(8)[None]).logits.isfinite().all()
"""

LOAD = """
import json
import sys
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(json.dumps({"class": type(model).__name__, "logits": model(torch.arange(8)[None]).logits.flatten().tolist()}))
"""


def test_a_model_that_fsdp2_sharded_carries_our_code_and_not_pytorch_s(tmp_path):
    """FSDP2 puts a class of its own over the model's, and Transformers saves the code of the class it finds."""
    source = tmp_path / "source"
    build(attention_order=2).save_pretrained(source)
    launch([sys.executable, "-c", SHARD_AND_SAVE, source, tmp_path / "out"], tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.py")) == CODE_FILES
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["NexusForCausalLM"]
    assert config["auto_map"] == NexusConfig().auto_map
    loaded = run_isolated(LOAD, tmp_path, tmp_path / "out")
    assert loaded["class"] == "NexusForCausalLM"
    expected = NexusForCausalLM.from_pretrained(source)(torch.arange(8)[None]).logits
    torch.testing.assert_close(torch.tensor(loaded["logits"]), expected.detach().flatten())
