"""The tasks that the paper reports, as lm-eval 0.4.13 has them."""

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Task:
    """
    Args:
        title: In the paper.
        folder: Of lm-eval's definition. lm-eval takes ten seconds to read all of its folders.
        metric: That the table shows; the results file has all.
        samples: Answers per question. The paper's figures need at least 16 for each of AIME24's 30 questions, 5 for
            each of the 198 of GPQA-Diamond and 2 for each of the 500 of MATH-500; how many it took is not known.
        split: Of lm-eval's task, for --data.
    """

    title: str
    group: str
    folder: str
    metric: str
    samples: int = 1
    split: str = "test"
    needs: tuple[str, ...] = ()


TASKS = {
    "arc_challenge": Task("ARC-C", "pretraining", "arc", "acc,none"),
    "arc_easy": Task("ARC-E", "pretraining", "arc", "acc,none"),
    "hellaswag": Task("HellaSwag", "pretraining", "hellaswag", "acc,none", split="validation"),
    "logiqa": Task("LogiQA", "pretraining", "logiqa", "acc,none"),
    "piqa": Task("PiQA", "pretraining", "piqa", "acc,none", split="validation"),
    "sciq": Task("SciQ", "pretraining", "sciq", "acc,none"),
    # of lm-eval's two versions, the one that finds an answer in \boxed{}
    "minerva_math500": Task(
        "MATH-500", "reasoning", "minerva_math", "math_verify,none", 4, needs=("math_verify", "antlr4")
    ),
    "aime24": Task("AIME24", "reasoning", "aime", "exact_match,none", 16, "train"),
    "gpqa_diamond_cot_zeroshot": Task(
        "GPQA-Diamond", "reasoning", "gpqa/cot_zeroshot", "exact_match,flexible-extract", 5, "train"
    ),
}
