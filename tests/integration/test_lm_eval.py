"""lm-eval, offline and with remote code: a converted model scores as its source does, to the last digit."""

import json
from pydoc_data.topics import topics

import pytest

from isolated import run_isolated
from nexus_transformers.conversion_scripts.convert import convert

pytest.importorskip("lm_eval")

SCRIPT = """
import json, lm_eval
from lm_eval.tasks import TaskManager

tasks = TaskManager(include_path="tasks", include_defaults=False)
report = {}
for folder in sys.argv[1:]:
    output = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": folder, "trust_remote_code": True, "dtype": "float32"},
        tasks=["next_word", "text", "continuation"],
        task_manager=tasks,
        batch_size=3,
        device="cpu",
        bootstrap_iters=0,
    )
    responses = {name: [sample["resps"] for sample in samples] for name, samples in output["samples"].items()}
    report[folder] = [output["results"], responses]
print(json.dumps(report))
"""


def write_tasks(folder):
    """Eight documents and three tasks: multiple choice, perplexity of a text, and generated text."""
    words = topics["class"].split()
    documents = [
        {"context": " ".join(words[start : start + 12]), "choices": words[start + 12 : start + 15], "answer": 0}
        for start in range(0, 160, 20)
    ]
    folder.mkdir()
    (folder / "documents.json").write_text(json.dumps(documents))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "documents.json")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "doc_to_text": "context",
    }
    text = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "context"}
    choice = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer"}
    generated = {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"max_gen_toks": 8, "until": ["\n\n"], "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    text["metric_list"] = [{"metric": "word_perplexity"}]
    choice["metric_list"] = [{"metric": "acc"}]
    for name, task in (("next_word", choice), ("text", text), ("continuation", generated)):
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | common | task))  # JSON is YAML


@pytest.mark.slow
def test_a_converted_model_scores_exactly_as_its_source_until_its_gates_open(llama_folder, tmp_path):
    write_tasks(tmp_path / "tasks")
    convert(llama_folder, tmp_path / "closed", verify=False)
    convert(llama_folder, tmp_path / "open", gate_init=0.5, verify=False)
    report = run_isolated(SCRIPT, tmp_path, llama_folder, tmp_path / "closed", tmp_path / "open")
    (source, source_responses), (closed, closed_responses), (opened, opened_responses) = report.values()

    assert {len(responses) for responses in source_responses.values()} == {8}
    assert closed == source
    assert closed_responses == source_responses
    assert opened["text"]["word_perplexity,none"] != source["text"]["word_perplexity,none"]
    for task in source_responses:
        assert opened_responses[task] != source_responses[task], f"{task} would not notice another model"
