"""Wrote the golden checkpoint beside this file. Not to be run again, except to add another one for a new feature."""

import json
from pathlib import Path

import torch

from nexus_transformers import NexusConfig, NexusForCausalLM

torch.manual_seed(0)
config = NexusConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    attention_order=[3, 2],
    inner_output_projection=True,
    inner_gate=True,
    initializer_range=0.4,
    rope_parameters={"rope_type": "default", "rope_theta": 4321.0},
)
model = NexusForCausalLM(config).eval()
with torch.no_grad():
    for number, gate in enumerate(model.gates().values()):
        gate.fill_(0.1 + 0.15 * number)
folder = Path(__file__).parent
model.save_pretrained(folder)
for copy in folder.glob("*_nexus.py"):
    copy.unlink()  # the test loads the checkpoint with today's code
ids = torch.randint(32, (12,))
logits = model(ids[None]).logits[0]
(folder / "logits.json").write_text(json.dumps({"input_ids": ids.tolist(), "logits": logits.tolist()}) + "\n")
