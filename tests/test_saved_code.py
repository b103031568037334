"""The code that a saved model brings: of subclasses too, and a user's own classes stay the ones that load."""

import json
import subprocess
import sys

from arms import SHAPE, build

from isolated import run_isolated
from nexus_transformers import NexusConfig
from nexus_transformers.configuration_nexus import AUTO_MAP

LOAD = """
import json, sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(json.dumps([type(model).__name__, model.dtype.__str__()]))
"""


def test_a_subclass_from_a_notebook_is_saved_with_the_code_that_loads_it(tmp_path):
    """Its own code is nowhere to be copied from. What is saved is a model of the class above it."""
    script = f"""
from nexus_transformers import NexusConfig, NexusForCausalLM
class Mine(NexusForCausalLM):
    pass
Mine(NexusConfig(**{SHAPE!r})).save_pretrained("model")
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    assert {"attention_nexus.py", "modeling_nexus.py"} <= {file.name for file in (tmp_path / "model").iterdir()}
    assert run_isolated(LOAD, tmp_path, tmp_path / "model")[0] == "NexusForCausalLM"


def test_a_class_of_the_user_s_in_the_auto_map_is_the_one_that_loads(tmp_path):
    folder = tmp_path / "model"
    build().save_pretrained(folder)
    (folder / "mymodel.py").write_text(
        "from .modeling_nexus import NexusForCausalLM\n\n\nclass MyNexus(NexusForCausalLM):\n    pass\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = "mymodel.MyNexus"
    (folder / "config.json").write_text(json.dumps(config))
    assert run_isolated(LOAD, tmp_path, folder)[0] == "MyNexus"
    of_the_hub = {name: f"someone/nexus--{reference}" for name, reference in AUTO_MAP.items()}
    assert NexusConfig(**SHAPE, auto_map=of_the_hub).auto_map == AUTO_MAP, "the folder has code of its own"
