"""
Write all that a try-out of the launch files needs, without network: `python -m experiments.paper.toy OUT`.

OUT gets text/, a tokenizer trained on it, source/ (a tiny untrained Qwen2 model), chats.jsonl, and questions/ for every
task in the columns of its real dataset. The text is Python's own documentation. The tests run the launch files with it.
"""

import argparse
import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

from nexus_transformers.tokenization import CHAT_TEMPLATES, train_tokenizer

from ..converted import write_toy
from .tasks import TASKS

LETTERS = "ABCD"
NUMBERS = ("four", "five", "six", "seven")


def answers(index: int) -> tuple[list[str], int]:
    """Four answers to question `index`, and which of them is right."""
    return [f"{number} of {index}" for number in NUMBERS], index % 4


def question(task: str, index: int) -> dict:
    """A row as the dataset of lm-eval's task has it."""
    texts, right = answers(index)
    wrong = [text for text in texts if text != texts[right]]
    ask = f"How many are there in case {index}?"
    label = LETTERS[right]
    rows = {
        "arc_challenge": {"question": ask, "choices": {"text": texts, "label": list(LETTERS)}, "answerKey": label},
        "hellaswag": {
            "activity_label": "Counting",
            "ctx_a": ask,
            "ctx_b": "it is",
            "endings": texts,
            "label": str(right),
        },
        "logiqa": {"context": "We count.", "question": ask, "options": texts, "label": label.lower()},
        "piqa": {"goal": ask, "sol1": texts[right], "sol2": wrong[0], "label": 0},
        "sciq": {
            "support": "We count.",
            "question": ask,
            "correct_answer": texts[right],
            **{f"distractor{i}": text for i, text in enumerate(wrong, start=1)},
        },
        "minerva_math500": {"problem": ask, "solution": f"We count to $\\boxed{{{index + 2}}}$."},
        "gpqa_diamond_cot_zeroshot": {
            "Question": ask,
            "Correct Answer": texts[right],
            **{f"Incorrect Answer {i}": text for i, text in enumerate(wrong, start=1)},
        },
        "aime24": {"Problem": ask, "Answer": str(index + 2)},
    }
    return rows["arc_challenge" if task == "arc_easy" else task]


def write_rows(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_questions(folder: Path, count: int = 4) -> None:
    folder.mkdir()
    for task in TASKS:
        write_rows(folder / f"{task}.jsonl", [question(task, index) for index in range(count)])


def write_chats(file: Path) -> None:
    words = topics["class"].split()
    rows = []
    for start in range(0, 160, 5):
        user = {"role": "user", "content": f"Go on: {' '.join(words[start : start + 5])}"}
        rows.append({"messages": [user, {"role": "assistant", "content": " ".join(words[start + 5 : start + 10])}]})
    write_rows(file, rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m experiments.paper.toy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("out", type=Path)
    out = parser.parse_args(arguments).out
    if out.exists():
        sys.exit(f"toy: {out} exists; delete it, or choose another folder.")
    (out / "text").mkdir(parents=True)
    for name in sorted(topics)[:12]:
        (out / "text" / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    tokenizer = train_tokenizer(sorted((out / "text").iterdir()), 400, CHAT_TEMPLATES["chatml"])
    tokenizer.save_pretrained(out / "tokenizer")
    write_toy(out / "source", "qwen2", 2, tokenizer)
    write_chats(out / "chats.jsonl")
    write_questions(out / "questions")
    print(f"toy: {out}")


if __name__ == "__main__":
    main()
