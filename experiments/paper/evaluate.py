"""
Score a model on the paper's tasks with lm-eval. launch/evaluate.sh starts it.

    python -m experiments.paper.evaluate MODEL --group pretraining
    python -m experiments.paper.evaluate MODEL --group reasoning

MODEL is a folder that pretrain.py or sft.py made, or with --preset any folder or Hub id (the released Pythia, say). The
scores go to results/, beside those of other tasks that are there, and table.py fills the table. The pretraining tasks
are zero-shot, by likelihood. The reasoning tasks are generated with the chat template, sampled, and averaged over
several samples per question.
"""

import argparse
import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import lm_eval
import torch
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import nexus_transformers  # noqa: F401  (registers the model: no remote code is needed)
from common.report import heading, save

from . import record
from .presets import ARMS, PRETRAINING, RETROFIT
from .tasks import RESULTS, TASKS

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}


def on_local_data(name: str, manager: TaskManager, data: Path, folder: Path) -> str:
    """Writes lm-eval's own definition of a task, with a local file in place of the download; returns where."""
    file = (data / f"{name}.jsonl").resolve()
    if not file.exists():
        sys.exit(f"evaluate: {file} does not exist; with --data every task needs a file of its questions.")
    split = TASKS[name].split
    changes = {
        "include": str(manager.task_index[name].yaml_path),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file)}, "cache_dir": str(folder / "cache")},
        **{f"{other}_split": None for other in ("training", "validation", "fewshot")},
        "test_split": split,
    }
    definition = folder / f"{name}.yaml"
    definition.write_text(json.dumps(changes))  # JSON is YAML
    return str(definition)


def score(lm: LM, names: list[str], options: argparse.Namespace) -> dict[str, dict]:
    """Each task's metrics in every round of answers; empty on all processes but the first."""
    folders = [Path(lm_eval.tasks.__file__).parent / TASKS[name].folder for name in names]
    manager = TaskManager(include_path=sorted(set(folders)), include_defaults=False)
    rounds = {name: options.samples or TASKS[name].samples for name in names}
    found: dict[str, dict] = {name: {"metric": TASKS[name].metric, "samples": []} for name in names}
    arguments = {"num_fewshot": 0, "limit": options.limit, "log_samples": False, "task_manager": manager}
    if options.group == "reasoning":
        arguments["gen_kwargs"] = SAMPLING | {"max_gen_toks": options.max_new_tokens}
        if options.chat:
            arguments |= {"apply_chat_template": True, "system_instruction": INSTRUCTION}
    with TemporaryDirectory() as folder:
        tasks = {name: name for name in names}
        if options.data is not None:
            tasks = {name: on_local_data(name, manager, options.data, Path(folder)) for name in names}
        for i in range(max(rounds.values())):
            due = [name for name in names if i < rounds[name]]
            seeds = {"random_seed": i, "numpy_random_seed": 1234 + i, "torch_random_seed": 1234 + i}
            output = lm_eval.simple_evaluate(lm, tasks=[tasks[name] for name in due], **arguments, **seeds)
            if output is None:
                continue
            for name in due:
                results = output["results"][name]
                metrics = {key: value for key, value in results.items() if isinstance(value, int | float)}
                found[name]["samples"].append(metrics)
                found[name]["questions"] = output["n-samples"][name]["effective"]
                found[name]["version"] = output["versions"].get(name)
    return {name: task for name, task in found.items() if task["samples"]}


def identity(options: argparse.Namespace) -> dict:
    """What is being scored: run.json of our own runs, else what the command line says."""
    file = Path(options.model) / record.FILE
    if file.exists():
        run = json.loads(file.read_text())
        kept = ("preset", "arm", "order", "steps", "planned_steps", "tokens", "seed")
        return {key: run[key] for key in kept if key in run}
    if options.preset is None:
        sys.exit(f"evaluate: {options.model} has no {record.FILE}; say with --preset which model of the paper it is.")
    return {"preset": options.preset, "arm": options.arm, "not_ours": options.model}


def earlier_scores(file: Path, facts: dict) -> dict:
    """The tasks that `file` has of the same model in the same circumstances. Ends the program if they are others."""
    if not file.exists():
        return {}
    report = json.loads(file.read_text())
    if differing := [
        f"{name} {report.get(name)!r}, now {value!r}" for name, value in facts.items() if report.get(name) != value
    ]:
        sys.exit(
            f"evaluate: {file} has scores that are not to be lost, of something else ({'; '.join(differing)}): move it "
            "away, or choose other --results."
        )
    return report["tasks"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m experiments.paper.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model")
    parser.add_argument("--group", required=True, choices=("pretraining", "reasoning"))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="some of the group only")
    parser.add_argument("--preset", choices=sorted({*PRETRAINING, *RETROFIT}), help="of a model that is not our run")
    parser.add_argument("--arm", default="standard", choices=list(ARMS), help="the same of its attention")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--batch-size", help="a number, or auto; by default auto for likelihoods, 16 for answers")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--samples", type=int, help="per question, instead of each task's own number")
    parser.add_argument("--max-new-tokens", type=int, default=30720, help="of a reasoning task's answer")
    parser.add_argument("--no-chat", dest="chat", action="store_false", help="reasoning tasks without chat template")
    parser.add_argument("--data", type=Path, help="folder with TASK.jsonl per task: for machines without network")
    parser.add_argument("--limit", type=int, help="questions per task, for a try-out; the table says so")
    options = parser.parse_args(arguments)
    names = [name for name in options.tasks or TASKS if TASKS[name].group == options.group]
    if not names:
        sys.exit(f"evaluate: none of {', '.join(options.tasks)} is a {options.group} task.")
    for name in names:
        if missing := [module for module in TASKS[name].needs if importlib.util.find_spec(module) is None]:
            sys.exit(f"evaluate: {name} needs {' and '.join(missing)}: pip install 'lm-eval[math]', or leave it out.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = identity(options) | {
        "model": Path(options.model).name,
        "group": options.group,
        "limit": options.limit,
        "local_data": options.data is not None,
        "dtype": options.dtype,
        "chat": options.chat,
        "sampling": SAMPLING | {"max_gen_toks": options.max_new_tokens} if options.group == "reasoning" else None,
    }
    file = options.results / f"{facts['preset']}_{facts['arm']}_{facts['model']}_{options.group}.json"
    earlier = earlier_scores(file, facts)
    # "auto" is found out anew in every round of answers
    batch = options.batch_size or ("auto" if options.group == "pretraining" else 16)
    lm = HFLM(options.model, dtype=options.dtype, device=device, batch_size=batch)
    if options.group == "reasoning" and options.max_new_tokens >= lm.max_length:
        sys.exit(f"evaluate: --max-new-tokens {options.max_new_tokens} leaves no room in {lm.max_length} positions.")
    if options.group == "reasoning" and options.chat and not lm.tokenizer.chat_template:
        sys.exit(f"evaluate: {options.model} has no chat template; pass --no-chat.")
    scores = score(lm, names, options)
    if not scores:  # not the first process
        return
    for name, task in scores.items():
        task["score"] = 100 * fmean(sample[task["metric"]] for sample in task["samples"])
        print(f"{TASKS[name].title:>14} {task['score']:5.1f}  ({task['questions']} x {len(task['samples'])} answers)")
    save(heading(device) | facts | {"tasks": earlier | scores, "lm_eval": version("lm_eval")}, file)
    print(f"evaluate: {file}")


if __name__ == "__main__":
    main()
