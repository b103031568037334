"""
Every launch file, as it is, at toy size with local data: two processes (gloo) instead of eight GPUs.

Each chain is that of a user: pack, pretrain, evaluate, table; and convert, fine-tune, evaluate, table.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from isolated import run_isolated
from nexus_transformers import NexusForCausalLM

pytest.importorskip("datasets")
pytest.importorskip("trl")
pytest.importorskip("lm_eval")
from experiments.paper import toy
from experiments.paper.tasks import TASKS

LAUNCH = Path(toy.__file__).parent / "launch"
ON_CPU = Path(__file__).parent / "paper_cpu"  # makes accelerate shard there
TOLERANCE = 1e-4  # a run with half the steps is 0.4 away in a weight
PRETRAINING = ["--max_steps", 6, "--save_steps", 3, "--logging_steps", 1]


def start(file: str, folder: Path, *options, **variables) -> subprocess.Popen:
    """Starts a launch file in `folder`, with environment variables; its processes form a group."""
    cuda = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment = os.environ | cuda | offline | path | {name: str(value) for name, value in variables.items()}
    return subprocess.Popen(
        [str(LAUNCH / file), *map(str, options)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """What it printed; it must end with this status, and its processes cannot outlive it."""
    try:
        output, _ = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == status, output[-20_000:]
    return output


def launch(file: str, folder: Path, *options, **variables) -> str:
    return finish(start(file, folder, *options, **variables))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def run_json(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def assert_same_run(one: Path, other: Path) -> None:
    """The same losses and weights, up to rounding: what was summed on one side was summed elsewhere on the other."""
    losses = [torch.tensor(run_json(folder)["losses"]) for folder in (one, other)]
    torch.testing.assert_close(*losses, rtol=TOLERANCE, atol=TOLERANCE)
    weights, others = (NexusForCausalLM.from_pretrained(folder).state_dict() for folder in (one, other))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert (weight - others[name]).abs().max() < TOLERANCE * weight.abs().max().clamp(min=0.01), name
    names = [{file.name for file in folder.iterdir() if file.is_file()} for folder in (one, other)]
    assert names[0] == names[1] >= {"modeling_nexus.py", "configuration_nexus.py", "tokenizer.json", "config.json"}
    assert len({(folder / "config.json").read_text() for folder in (one, other)}) == 1
    assert len({(folder / "model.safetensors").stat().st_size for folder in (one, other)}) == 1


def cells(table: Path, model: str, title: str) -> list[str]:
    row = next(line for line in table.read_text().splitlines() if line.startswith(f"| {model} | {title} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.slow
def test_pretraining_from_text_to_table(tmp_path):
    toy.main([str(tmp_path / "toy")])
    common = {"PRESET": "toy", "PACKED": "packed", "ARM": "nexus-qkv"}
    source = {"DATA": "toy/text", "TOKENIZER": "toy/tokenizer", "LENGTH": 64}
    launch("pack.sh", tmp_path, "--validation", 8, **source, PACKED="packed")
    assert json.loads((tmp_path / "packed" / "pack.json").read_text())["validation_rows"] == 8

    launch("pretrain_torchrun.sh", tmp_path, *PRETRAINING, NPROC=2, OUT="ddp", **common)
    run = run_json(tmp_path / "ddp")
    assert (run["parallelism"], run["processes"], run["sharded_tensors"]) == ("ddp", 2, 0)
    assert (run["arm"], run["order"]) == ("nexus-qkv", 2)
    assert (run["steps"], run["tokens"]) == (6, 6 * 8 * 64)
    assert run["losses"][-1][1] < run["losses"][0][1]
    assert run["validation_loss"] < run["losses"][0][1]

    # Two machines, played by two launchers with one process each; they take up the run where it was half done.
    shutil.copytree(tmp_path / "ddp/trainer/checkpoint-3", tmp_path / "nodes/trainer/checkpoint-3")
    shutil.copy(tmp_path / "ddp/trainer/started.json", tmp_path / "nodes/trainer")
    variables = {"NNODES": 2, "NPROC": 1, "HOST": "127.0.0.1", "PORT": free_port(), "OUT": "nodes", **common}
    machines = [start("pretrain_multinode.sh", tmp_path, *PRETRAINING, **variables) for _ in range(2)]
    for machine in machines:
        finish(machine)
    assert (run_json(tmp_path / "nodes")["processes"], run_json(tmp_path / "nodes")["resumed_at_step"]) == (2, 3)
    assert_same_run(tmp_path / "nodes", tmp_path / "ddp")

    variables = {"NPROC": 1, "PORT": free_port(), "OUT": "fsdp", **common}
    output = finish(start("pretrain_fsdp2.sh", tmp_path, *PRETRAINING, **variables), status=1)
    assert "FSDP was asked for, but accelerate does not shard on the cpu" in output
    variables |= {"PYTHONPATH": ON_CPU, "NNODES": 2, "NPROC": 1, "HOST": "127.0.0.1", "PORT": free_port()}
    machines = [start("pretrain_fsdp2.sh", tmp_path, *PRETRAINING, **variables, NODE_RANK=rank) for rank in range(2)]
    for machine in machines:
        finish(machine)
    run = run_json(tmp_path / "fsdp")
    model = NexusForCausalLM.from_pretrained(tmp_path / "fsdp")
    assert (run["parallelism"], run["processes"]) == ("fsdp2", 2)
    assert run["sharded_tensors"] == len(list(model.parameters()))
    assert_same_run(tmp_path / "fsdp", tmp_path / "ddp")

    names = [name for name, task in TASKS.items() if task.group == "pretraining"]
    variables = {"MODEL": "ddp", "GROUP": "pretraining", "RESULTS": "results", "TABLE": "PAPER.md", "NPROC": 1}
    launch("evaluate.sh", tmp_path, "--data", "toy/questions", "--batch-size", 4, **variables)
    results = json.loads((tmp_path / "results" / "toy_nexus-qkv_ddp_pretraining.json").read_text())
    assert set(results["tasks"]) == set(names)
    for name in names:
        expected = f"{results['tasks'][name]['score']:.1f} (nexus-qkv, 3.07e-06B tokens, local data)"
        assert cells(tmp_path / "PAPER.md", "toy", TASKS[name].title)[3:] == ["-", "-", "not run", expected]


@pytest.mark.slow
def test_retrofit_from_source_to_table(tmp_path):
    toy.main([str(tmp_path / "toy")])
    for arm in ("ours", "nexus-qk"):
        launch("convert.sh", tmp_path, "--no-verify", SOURCE="toy/source", CONVERTED=arm, ARM=arm)

    options = ["--max_steps", 4, "--logging_steps", 1, "--save_steps", 2, "--gate_learning_rate", 0.02]
    common = {"PRESET": "toy", "DATA": "toy/chats.jsonl", "NPROC": 2, "ARM": "ours"}
    launch("sft_torchrun.sh", tmp_path, *options, CONVERTED="ours", OUT="ddp", **common)
    run = run_json(tmp_path / "ddp")
    assert (run["parallelism"], run["processes"], run["steps"]) == ("ddp", 2, 4)
    assert run["losses"][-1][1] < run["losses"][0][1]
    assert len(run["gates"]) == 4
    # Adam moves each gate by about its own learning rate per step, and not by that of the weights, which is 1e-3
    assert max(map(abs, run["gates"].values())) > 0.01

    variables = common | {"PORT": free_port(), "PYTHONPATH": ON_CPU}
    launch("sft_fsdp2.sh", tmp_path, *options, CONVERTED="ours", OUT="fsdp", **variables)
    run = run_json(tmp_path / "fsdp")
    assert run["parallelism"] == "fsdp2"
    assert run["sharded_tensors"] == len(list(NexusForCausalLM.from_pretrained(tmp_path / "fsdp").parameters()))
    assert_same_run(tmp_path / "fsdp", tmp_path / "ddp")
    assert run["gates"] == pytest.approx(run_json(tmp_path / "ddp")["gates"], abs=1e-6)
    shutil.copytree(tmp_path / "fsdp/trainer/checkpoint-2", tmp_path / "resumed/trainer/checkpoint-2")
    shutil.copy(tmp_path / "fsdp/trainer/started.json", tmp_path / "resumed/trainer")
    launch("sft_fsdp2.sh", tmp_path, *options, CONVERTED="ours", OUT="resumed", **variables)
    assert run_json(tmp_path / "resumed")["resumed_at_step"] == 2
    assert_same_run(tmp_path / "resumed", tmp_path / "ddp")
    script = """
import json
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)("class", return_tensors="pt")["input_ids"]
print(json.dumps([type(model).__module__.split(".")[0], model(ids).logits[0, -1].tolist()]))
"""
    module, logits = run_isolated(script, tmp_path, tmp_path / "fsdp")
    ids = AutoTokenizer.from_pretrained(tmp_path / "ddp")("class", return_tensors="pt")["input_ids"]
    expected = NexusForCausalLM.from_pretrained(tmp_path / "ddp")(ids).logits[0, -1]
    assert module == "transformers_modules"
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=TOLERANCE, atol=TOLERANCE)

    # The paper's own: no gates, random inner layers. Computed in bf16, as on GPUs.
    variables |= {"ARM": "nexus-qk", "CONVERTED": "nexus-qk", "NPROC": 1}
    launch("sft_fsdp2.sh", tmp_path, *options, "--bf16", "true", OUT="ungated", **variables)
    run = run_json(tmp_path / "ungated")
    assert (run["gates"], run["gate_learning_rate"], run["arm"], run["order"]) == ({}, None, "nexus-qk", 2)
    trained = NexusForCausalLM.from_pretrained(tmp_path / "ungated")
    assert not trained.config.inner_scale and hasattr(trained.model.layers[0].self_attn, "inner_query")
    assert run["precision"] == "float32 weights, bf16 autocast"
    weights = load_file(tmp_path / "ungated" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}

    names = ["gpqa_diamond_cot_zeroshot", "aime24"]
    variables = {"MODEL": "ungated", "GROUP": "reasoning", "RESULTS": "results", "TABLE": "PAPER.md", "NPROC": 1}
    options = ["--data", "toy/questions", "--batch-size", 4, "--max-new-tokens", 8, "--samples", 2, "--tasks", *names]
    launch("evaluate.sh", tmp_path, *options, **variables)
    results = json.loads((tmp_path / "results" / "toy_nexus-qk_ungated_reasoning.json").read_text())
    assert [len(results["tasks"][name]["samples"]) for name in names] == [2, 2]
    assert cells(tmp_path / "PAPER.md", "toy", "AIME24")[3:6] == ["-", "-", "not run"]
    assert cells(tmp_path / "PAPER.md", "toy", "AIME24")[6].endswith("(local data)")
