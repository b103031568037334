"""The paper's tasks as lm-eval has them, on local questions: someone who knows scores 100, someone who errs 0."""

import argparse
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
import lm_eval
from lm_eval.api.model import LM

from experiments.paper import evaluate, toy
from experiments.paper.table import TABLE_3
from experiments.paper.tasks import TASKS

QUESTIONS = 4


class Examinee(LM):
    """Answers as the questions' own data say, or at odds with it; `right(n)` says which in the n-th sitting."""

    tokenizer_name = "none"

    def __init__(self, task: str, right):
        super().__init__()
        self.task, self.right, self.sitting, self.prompts = task, right, -1, []

    def loglikelihood(self, requests):
        self.sitting += 1
        answers = []
        for request in requests:
            prompt, continuation = request.args
            self.prompts.append(prompt)
            index = request.doc_id
            texts, right = toy.answers(index)
            correct = texts[right] in continuation
            if self.task == "logiqa":  # the prompt names all answers, the last line asks
                assert all(text in prompt for text in texts)
            answers.append((0.0 if correct == self.right(self.sitting) else -math.inf, False))
        return answers

    def generate_until(self, requests):
        self.sitting += 1
        answers = []
        for request in requests:
            prompt, arguments = request.args
            self.prompts.append(prompt)
            self.arguments = arguments
            index = request.doc_id
            if self.task.startswith("gpqa"):
                texts, right = toy.answers(index)
                text = texts[right] if self.right(self.sitting) else texts[right - 1]
                letter = prompt[prompt.index(f") {text}") - 1]
                answers.append(f"I think so. The answer is ({letter}).")
            else:
                value = index + 2 if self.right(self.sitting) else index + 3
                answers.append(f"We count, and the answer is $\\boxed{{{value}}}$.")
        return answers

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


def sit(task: str, tmp_path, right, **changes) -> tuple[dict, Examinee]:
    folder = tmp_path / "questions"
    if not folder.exists():
        toy.write_questions(folder, QUESTIONS)
    options = {"group": TASKS[task].group, "data": folder, "limit": None, "samples": 1, "chat": False}
    options |= {"max_new_tokens": 32, **changes}
    examinee = Examinee(task, right)
    return evaluate.score(examinee, [task], argparse.Namespace(**options))[task], examinee


@pytest.mark.parametrize("task", TASKS)
def test_every_task_reads_its_questions_and_scores_their_answers(task, tmp_path):
    for module in TASKS[task].needs:
        pytest.importorskip(module)
    metric = TASKS[task].metric
    found, examinee = sit(task, tmp_path, lambda sitting: sitting == 0, samples=2)
    assert [sample[metric] for sample in found["samples"]] == [1.0, 0.0], "first one who knows, then one who errs"
    assert found["questions"] == QUESTIONS
    assert len(set(examinee.prompts)) == QUESTIONS, "few-shot examples would repeat other questions"
    assert all(prompt.count("How many are there") == 1 for prompt in examinee.prompts)


def test_answers_are_sampled_and_averaged(tmp_path):
    found, examinee = sit("aime24", tmp_path, lambda sitting: sitting != 1, samples=3)
    assert [sample["exact_match,none"] for sample in found["samples"]] == [1.0, 0.0, 1.0]
    assert examinee.arguments["max_gen_toks"] == 32
    assert {key: examinee.arguments[key] for key in evaluate.SAMPLING} == evaluate.SAMPLING
    assert examinee.arguments["do_sample"]


def test_each_task_is_sampled_as_often_as_the_paper_must_have(tmp_path):
    def possible(percent: float, questions: int, samples: int) -> bool:
        total = questions * samples
        return any(round(100 * right / total, 1) == percent for right in range(total + 1))

    papers = zip(*(each.split() for model in TABLE_3.values() for each in model), strict=True)
    questions = {"minerva_math500": (500, 2), "aime24": (30, 16), "gpqa_diamond_cot_zeroshot": (198, 5)}
    for (name, (count, fewest)), figures in zip(questions.items(), papers, strict=False):
        figures = [float(figure) for figure in figures]
        enough = [k for k in range(1, 17) if all(possible(figure, count, k) for figure in figures)]
        assert enough[0] == fewest and TASKS[name].samples in enough, name


def test_a_missing_file_of_questions_is_named(tmp_path):
    options = {"group": "pretraining", "data": tmp_path, "limit": None, "samples": None, "chat": False}
    with pytest.raises(SystemExit, match=r"sciq\.jsonl does not exist"):
        evaluate.score(Examinee("sciq", None), ["sciq"], argparse.Namespace(**options))


def test_lm_eval_has_every_task_where_it_is_looked_for():
    for name, task in TASKS.items():
        folder = Path(lm_eval.tasks.__file__).parent / task.folder
        assert name in lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False).all_subtasks


def test_scores_of_other_tasks_are_kept_and_those_of_other_circumstances_not_mixed(tmp_path):
    facts = {"preset": "toy", "arm": "standard", "limit": None}
    file = tmp_path / "scores.json"
    assert evaluate.earlier_scores(file, facts) == {}
    file.write_text(json.dumps(facts | {"date": "then", "tasks": {"aime24": {"score": 50.0}}}))
    assert evaluate.earlier_scores(file, facts) == {"aime24": {"score": 50.0}}
    with pytest.raises(
        SystemExit, match=r"scores\.json has scores .* of something else \(limit None, now 10\): move it"
    ):
        evaluate.earlier_scores(file, facts | {"limit": 10})


def test_a_model_that_is_none_of_our_runs_must_be_named(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))
    with pytest.raises(SystemExit, match=r"has no run\.json; say with --preset"):
        evaluate.main([str(tmp_path), "--group", "pretraining"])
    with pytest.raises(SystemExit, match="none of aime24 is a pretraining task"):
        evaluate.main([str(tmp_path), "--group", "pretraining", "--tasks", "aime24"])
