"""IQuest-Coder: Llama under another name."""

from .llama import RULES as LLAMA

MODEL_TYPE = "iquestcoder"

RULES = {
    "models": "IQuest-Coder-V1, but not the looped ones",
    "config": LLAMA["config"],
    "required": {"use_sliding_window": False},
    "weights": LLAMA["weights"],
}
