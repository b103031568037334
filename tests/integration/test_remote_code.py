"""A model folder stands alone: it loads in a fresh process that cannot import our package, with all that it needs."""

import ast
import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import nexus_transformers
from isolated import run_isolated
from nexus_transformers import NexusConfig, NexusForCausalLM
from nexus_transformers.conversion_scripts.checkpoint.files import CODE_FILES
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.conversion_scripts.hub.card import EVIDENCE, card_for_repository

ROOT = Path(nexus_transformers.__file__).parent


def test_model_files_import_torch_and_transformers_only():
    allowed = {"torch", "transformers", "huggingface_hub"}  # the hub client: `strict` configs
    allowed |= sys.stdlib_module_names
    allowed |= {name.removesuffix(".py") for name in CODE_FILES}
    for name in CODE_FILES:
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in allowed


@pytest.mark.parametrize("tied", [True, False])
def test_every_auto_class_loads_generates_and_saves_again_in_a_fresh_process(tied, tmp_path):
    config = NexusConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_order=[2, 3],
        inner_gate=True,
        inner_gate_init=0.4,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 777.0},
        initializer_range=0.2,
    )
    model = NexusForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    ids = torch.arange(1, 20)[None]
    script = """
import json, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils import logging
logging.disable_progress_bar()
folder, again = sys.argv[1:3]
ids = torch.arange(1, 20)[None]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
logits = model(ids).logits
tokens = model.generate(ids, max_new_tokens=8, do_sample=False)
model.save_pretrained(again)
reloaded = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True).eval()
hidden = AutoModel.from_pretrained(again, trust_remote_code=True).eval()(ids).last_hidden_state
config = AutoConfig.from_pretrained(again, trust_remote_code=True)
standard = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attention_order=1).eval()
print(json.dumps({
    "logits": logits[0, -1].tolist(),
    "tokens": tokens[0].tolist(),
    "reload": torch.equal(reloaded(ids).logits, logits),
    "hidden": torch.equal(model.lm_head(hidden), logits),
    "theta": config.rope_parameters["rope_theta"],
    "inv_freq": reloaded.model.rotary_emb.inv_freq.tolist(),
    "slots": [model.config.num_hidden_layers, standard.config.num_hidden_layers],
    "standard_differs": (standard(ids).logits - logits).abs().max().item(),
    "module": type(model).__module__,
}))
"""
    result = run_isolated(script, tmp_path, tmp_path / "model", tmp_path / "again")
    assert result["module"].startswith("transformers_modules.")
    assert torch.equal(torch.tensor(result["logits"]), model(ids).logits[0, -1])
    assert result["tokens"] == model.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist()
    assert result["reload"]
    assert result["hidden"]
    assert result["theta"] == 777.0
    assert result["inv_freq"] == model.model.rotary_emb.inv_freq.tolist()
    assert result["slots"] == [5, 2]
    assert result["standard_differs"] > 1e-3


def test_every_head_loads_in_a_fresh_process(tmp_path):
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_attention_heads": 4}
    heads = {
        name: reference for name, reference in NexusConfig().auto_map.items() if "For" in name and "Causal" not in name
    }
    assert len(heads) == 4
    for auto_class, reference in heads.items():
        config = NexusConfig(**shape, num_labels=3, pad_token_id=0, is_causal="Masked" not in auto_class)
        model = getattr(nexus_transformers, reference.split(".")[-1])(config).eval()
        model.save_pretrained(tmp_path / auto_class)
    script = """
import json, torch, transformers
ids = torch.arange(1, 10)[None]
for name in sys.argv[1:]:
    model = getattr(transformers, name.split("/")[-1]).from_pretrained(name, trust_remote_code=True).eval()
    again = type(model).from_pretrained(name)
    outputs = [model(ids)[0], again(ids)[0]]
    assert torch.equal(*outputs), name
    torch.save(outputs[0], name + "/outputs.pt")
print(json.dumps([type(model).__module__]))
"""
    (module,) = run_isolated(script, tmp_path, *(tmp_path / auto_class for auto_class in heads))
    assert module.startswith("transformers_modules.")
    for auto_class, reference in heads.items():
        model = getattr(nexus_transformers, reference.split(".")[-1]).from_pretrained(tmp_path / auto_class).eval()
        assert torch.equal(model(torch.arange(1, 10)[None])[0], torch.load(tmp_path / auto_class / "outputs.pt"))


def test_a_remote_model_is_fine_tuned_and_what_is_saved_carries_the_code(llama_folder, tmp_path):
    train = "lora" if find_spec("peft") else "gates"
    convert(llama_folder, tmp_path / "model", verify=False)
    (tmp_path / "model" / "License.txt").write_text("yours")
    command = ["--train", train, "--steps", "4", "--length", "32", "--eval-blocks", "4", "--gate-learning-rate", "0.05"]
    script = """
import json, runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(json.dumps(sorted(module for module in sys.modules if module.startswith("nexus_transformers."))))
"""
    example = ROOT / "examples" / "finetune.py"
    plot = tmp_path / "gates.png"
    assert (
        run_isolated(script, tmp_path, example, tmp_path / "model", tmp_path / "tuned", *command, "--plot", plot) == []
    )
    result = json.loads((tmp_path / "tuned" / "finetune.json").read_text())
    assert result["loss_after"] != result["loss_before"]
    assert len(result["gates"]) == 6
    assert all(value != 0 for value in result["gates"].values()), "every gate was trained"
    assert plot.stat().st_size > 10_000
    assert (tmp_path / "tuned" / "modeling_nexus.py").exists()
    card = card_for_repository(tmp_path / "tuned", "someone/tuned").decode()  # fit to be pushed
    assert "# model, fine-tuned" in card and "someone/tuned" in card
    assert f"from {result['loss_before']:.4f} to {result['loss_after']:.4f} nats" in card
    assert EVIDENCE.read_text().rstrip() in card
    assert (tmp_path / "tuned" / "License.txt").read_text() == "yours"
    assert "computes exactly the function" not in card and "negative control" not in card and "model-index" not in card

    before, after = (
        NexusForCausalLM.from_pretrained(tmp_path / "model"),
        NexusForCausalLM.from_pretrained(tmp_path / "tuned"),
    )
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        trained = name in before.gates() or (train == "lora" and "_proj." in name and name.endswith("weight"))
        assert torch.equal(old, new) != trained, f"{name}: what is trained moves, everything else is frozen"


def test_a_second_fine_tuning_keeps_the_word_of_the_first_and_shows_every_gate(llama_folder, tmp_path, capsys):
    convert(llama_folder, tmp_path / "model", order=3, refine=["query", "value"], verify=False)
    finetune = runpy.run_path(str(ROOT / "examples" / "finetune.py"))
    for folder in ("once", "twice", "without"):
        (tmp_path / folder).mkdir()
    finetune["write_card"](str(tmp_path / "model"), tmp_path / "once", "Trained on letters.")
    finetune["write_card"](str(tmp_path / "once"), tmp_path / "twice", "Trained on words.")
    card = (tmp_path / "twice" / "README.md").read_text()
    assert "# once, fine-tuned\n\nTrained on words.\n\nBefore that: Trained on letters.\n\n## Use" in card
    finetune["write_card"](str(tmp_path / "without"), tmp_path / "without", "Trained.")
    assert "has no model card, so none was written" in capsys.readouterr().out

    gates = NexusForCausalLM.from_pretrained(tmp_path / "model").gates()
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.axes.Axes.bar", lambda self, at, height, **how: drawn.append((how["label"], *height)))
        values = {name: place / 10 for place, name in enumerate(gates)}
        with pytest.warns(UserWarning, match="No artists"):  # no bar is drawn here
            finetune["plot_gates"](values, [], tmp_path / "gates.png")
    assert sorted(label for label, *_ in drawn) == ["query, level 1", "query, level 2", "value, level 2"]
    assert sorted(value for _, *heights in drawn for value in heights) == sorted(values.values())


def test_chat_example(llama_folder, tmp_path):
    convert(llama_folder, tmp_path / "model", verify=False)
    script = """
import json, runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(json.dumps(True))
"""
    arguments = (ROOT / "examples" / "chat.py", tmp_path / "model", "Hello?", "--max-new-tokens", "4")
    assert run_isolated(script, tmp_path, *arguments)
