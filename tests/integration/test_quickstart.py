"""The notebook: it runs from top to bottom on a tiny model, and has been run on a real one."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

import checkpoints
from doc_pages import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
PATH_OF_A_MACHINE = r"(?<![\w.])/(work|root|home|tmp|usr|opt|var|Users)/|site-packages"


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def test_the_notebook_has_its_outputs_and_nothing_of_the_machine_that_made_them():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 150_000
    install, *cells = code_cells(json.loads(text))
    assert install["metadata"]["tags"] == ["skip-execution"] and install["outputs"] == []
    url = re.search(r"git\+https://\S+", (ROOT / "README.md").read_text())[0]
    assert url in "".join(install["source"])
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "in one go"
    for cell in cells:
        assert cell["outputs"]
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
        assert not re.search(PATH_OF_A_MACHINE, printed(cell))
    assert "Paris" in text and "max |Δlogit| 0.0" in text
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"]) == 2


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    # a folder of the name is found before the Hub is asked
    checkpoints.llama(tmp_path / "HuggingFaceTB" / "SmolLM2-135M-Instruct", head_dim=12)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # the nexus command
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(notebook):
        cell["outputs"] = []
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    install, convert, verify, generate, train, plot, inspect, picture = code_cells(notebook)
    assert install["outputs"] == []
    assert "Verified in a fresh process" in printed(convert)
    assert "closed gates, the same logits: True\none open gate, the same logits: False\n" in printed(verify)
    assert printed(generate).strip()
    assert "'gates/largest'" in printed(train) and (tmp_path / "smollm2-nexus-tuned" / "model.safetensors").exists()
    assert "inspect/index.html" in printed(inspect) and (tmp_path / "inspect" / "index.html").exists()
    assert all("image/png" in cell["outputs"][-1]["data"] for cell in (plot, picture))
