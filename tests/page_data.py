"""What a page of `nexus inspect` carries, and what it should: the attention maps that Transformers records."""

import base64
import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

from nexus_transformers import NexusConfig, NexusForCausalLM, NexusForMaskedLM


def data_of(page):
    """The data that a page carries, and its maps, (layers) of (maps, heads, T, T)."""
    text = Path(page).read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    maps, paths = (
        zlib.decompress(base64.b64decode(re.search(rf'id="packed-{name}">(.*?)</script>', text)[1]))
        for name in ("maps", "paths")
    )
    data["paths"] = json.loads(paths)
    planes = np.frombuffer(maps, np.uint8).reshape(2, -1)
    size = len(data["tokens"])
    rows, columns = np.tril_indices(size) if data["causal"] else np.indices((size, size)).reshape(2, -1)
    layers = []
    for maps in data["maps"]:
        before, found = {}, np.zeros((len(maps), data["heads"], size, size))
        for whole, (_, branch, heads) in zip(found, maps, strict=True):
            part, planes = np.split(planes, [heads * len(rows)], axis=1)
            before[branch] = (part.astype(int) + before.get(branch, 0)) % 256
            low, high = before[branch].reshape(2, heads, -1).repeat(data["heads"] // heads, axis=1)
            whole[:, rows, columns] = (low + 256 * high) / 1000
        layers.append(found)
    assert planes.size == 0
    return data, layers


def class_of(folder):
    return NexusForCausalLM if NexusConfig.from_pretrained(folder).is_causal else NexusForMaskedLM


def attentions_of(folder, ids, gates=None):
    """As Transformers records them, one per call, in the order of the calls; grouped by layer, a row per query head."""
    model = class_of(folder).from_pretrained(folder, attn_implementation="eager").eval()
    if gates is not None:
        for gate in model.gates().values():
            gate.data.fill_(gates)
    with torch.no_grad():
        attentions = iter(model(torch.tensor([ids]), output_attentions=True).attentions)
    layers = []
    for calls in model.config.attention_calls():
        maps = [next(attentions)[0].float().numpy() for _ in calls]
        layers.append(np.stack([each.repeat(model.config.num_attention_heads // len(each), axis=0) for each in maps]))
    return layers


def unrefined_of(folder, ids):
    """By layer, the maps of a standard layer with the same weights and the same input."""
    model = class_of(folder).from_pretrained(folder).eval()
    fields = model.config.to_diff_dict() | {"num_layers": 1, "attention_order": 1}
    maps = []
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for number, hidden_states in enumerate(states[:-1]):
            standard = type(model)._from_config(NexusConfig(**fields), attn_implementation="eager").eval()
            own = model.model.layers[number].state_dict()
            _, unexpected = standard.model.layers[0].load_state_dict(own, strict=False)
            assert all(".inner_" in f".{key}" for key in unexpected)
            maps.append(standard(inputs_embeds=hidden_states, output_attentions=True).attentions[0][0].numpy())
    return maps
