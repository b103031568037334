"""ESM-2 as it was published: frequencies rounded and in every layer, a tokenizer of proteins, a head for contacts."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, EsmTokenizer, pipeline

import checkpoints
from nexus_transformers import NexusConfig, NexusForMaskedLM, NexusForSequenceClassification
from nexus_transformers.conversion_scripts.families import FAMILIES

FREQUENCIES = "esm.rotary_embeddings.inv_freq"
ACIDS = "L A G V S E R T I D P K Q N F Y M H W C X B U Z O . -".split()
VOCABULARY = ["<cls>", "<pad>", "<eos>", "<unk>", *ACIDS, "<null_1>", "<mask>"]
PROTEIN = "MKTAYIAKQRQISFVKSHFSRQ"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """As the Hub has them: a buffer of every layer, rounded to float16 and stored as float32."""
    folder = tmp_path_factory.mktemp("esm")
    ids = {"mask_token_id": VOCABULARY.index("<mask>"), "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}
    model = checkpoints.make("esm", **checkpoints.SHAPES["esm"] | ids | {"vocab_size": len(VOCABULARY)})
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights = {checkpoints.new_name(name): tensor for name, tensor in weights.items()}
    rounded = weights.pop(FREQUENCIES).half().float()
    for layer in range(model.config.num_hidden_layers):
        weights[f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"] = rounded.clone()
    weights["esm.embeddings.position_ids"] = torch.arange(512)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    EsmTokenizer(folder / "vocab.txt").save_pretrained(folder)
    return folder, rounded


def test_rounded_frequencies_are_kept(published, nexus, tmp_path):
    source, rounded = published
    status, output, errors = nexus("convert", source, tmp_path / "nexus", "--order", "2", "--json")
    assert (status, errors) == (0, "")
    assert json.loads(output)["verification"]["tolerance"] > 0
    config = NexusConfig.from_pretrained(tmp_path / "nexus")
    assert config.rope_frequencies == rounded.tolist() and config.classifier_pooling == "first"
    model = NexusForMaskedLM.from_pretrained(tmp_path / "nexus")
    assert torch.equal(model.model.rotary_emb.inv_freq, rounded), "loading makes them anew"

    assert nexus("convert", tmp_path / "nexus", tmp_path / "back", "--to-source")[0] == 0
    returned = load_file(tmp_path / "back" / "model.safetensors")
    assert torch.equal(returned[FREQUENCIES], rounded)
    assert not any("contact_head" in name for name in returned), "it reads attention maps: it is left behind"

    file = tmp_path / "nexus" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_frequencies": None}))
    status, _, errors = nexus("verify", source, tmp_path / "nexus")
    assert status == 1 and "rope_frequencies" in errors


@torch.no_grad()
def test_frequencies_that_are_not_kept_make_another_function(published):
    """Far along a protein: the check of the test above is not a matter of form."""
    source = AutoModelForMaskedLM.from_pretrained(published[0])
    ids = torch.randint(4, 24, (1, 400))
    expected = source(ids).logits
    source.esm.rotary_embeddings.inv_freq.copy_(
        source.esm.rotary_embeddings.compute_default_rope_parameters(source.config)[0]
    )
    assert (source(ids).logits - expected).abs().max() > 1e-3 * expected.abs().max()


def test_layer_by_layer(published, nexus, tmp_path):
    status, output, errors = nexus("convert", published[0], tmp_path / "nexus", "--order", "2", "--layer-by-layer")
    assert (status, errors) == (0, "")
    assert "Verified" in output


def test_masked_amino_acids_are_filled_in_as_by_the_source(published, nexus, tmp_path):
    source, _ = published
    assert nexus("convert", source, tmp_path / "nexus", "--no-verify")[0] == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "nexus", trust_remote_code=True)
    assert tokenizer(PROTEIN)["input_ids"] == AutoTokenizer.from_pretrained(source)(PROTEIN)["input_ids"]
    masked = PROTEIN[:5] + "<mask>" + PROTEIN[6:]
    expected = pipeline("fill-mask", str(source))(masked)
    actual = pipeline("fill-mask", str(tmp_path / "nexus"), trust_remote_code=True)(masked)
    assert [each["token_str"] for each in actual] == [each["token_str"] for each in expected]


@torch.no_grad()
def test_a_classifier_starts_from_the_encoder(published, nexus, tmp_path):
    assert nexus("convert", published[0], tmp_path / "nexus", "--no-verify")[0] == 0
    model = NexusForSequenceClassification.from_pretrained(tmp_path / "nexus", num_labels=3)
    ids = torch.randint(4, 24, (2, 12))
    assert torch.equal(model(ids).logits, model.score(model.model(ids).last_hidden_state[:, 0]))


PUBLISHED = json.loads("""{
    "architectures": ["EsmForMaskedLM"], "attention_probs_dropout_prob": 0.0, "classifier_dropout": null,
    "emb_layer_norm_before": false, "esmfold_config": null, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "hidden_size": 640, "initializer_range": 0.02, "intermediate_size": 2560, "is_folding_model": false,
    "layer_norm_eps": 1e-05, "mask_token_id": 32, "max_position_embeddings": 1026, "model_type": "esm",
    "num_attention_heads": 20, "num_hidden_layers": 30, "pad_token_id": 1, "position_embedding_type": "rotary",
    "token_dropout": true, "torch_dtype": "float32", "transformers_version": "4.25.0.dev0", "use_cache": true,
    "vocab_list": null, "vocab_size": 33
}""")  # of facebook/esm2_t30_150M_UR50D


def test_the_config_of_a_published_checkpoint():
    """As many parameters as in Transformers' class, but for the head for contacts."""
    config = AutoConfig.for_model(**PUBLISHED)
    nexus = NexusConfig(**FAMILIES["esm"].nexus_config(PUBLISHED, config), attention_order=1)
    assert (nexus.head_dim, nexus.token_dropout, nexus.mask_token_id) == (32, True, 32)
    with torch.device("meta"):
        model, source = NexusForMaskedLM(nexus), AutoModelForMaskedLM.from_config(config)
    model.tie_weights()
    contacts = sum(parameter.numel() for parameter in source.esm.contact_head.parameters())
    assert model.num_parameters() == source.num_parameters() - contacts
    returned = FAMILIES["esm"].source_config(nexus)
    ignored = ("bos_token_id", "dtype", "architectures", "_name_or_path", "transformers_version", "classifier_dropout")
    said = {name: value for name, value in config.to_dict().items() if name not in (*ignored, "hidden_act")}
    assert said.items() <= returned.to_dict().items()


def test_the_frequencies_of_rope_theta_are_not_written_down():
    source = checkpoints.make("esm", **checkpoints.SHAPES["esm"])
    weights = source.state_dict()
    fields = FAMILIES["esm"].nexus_config(json.loads(source.config.to_json_string()), source.config)
    config = NexusConfig(**fields, attention_order=1)
    assert weights[FREQUENCIES].shape == (8,)

    class Checkpoint:
        tensors, read = weights, staticmethod(weights.__getitem__)

    assert FAMILIES["esm"].in_weights["rope_frequencies"](Checkpoint, config) is None
    assert torch.equal(NexusForMaskedLM(config).model.rotary_emb.inv_freq, weights[FREQUENCIES])
