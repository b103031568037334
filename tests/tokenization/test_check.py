"""A tokenizer beside its model: vocabulary against embedding, special tokens of all files against each other."""

import json
import subprocess
import sys
from pydoc_data.topics import topics

import pytest

import checkpoints
from nexus_transformers import NexusConfig
from nexus_transformers.tokenization import CHAT_TEMPLATES, check_tokenizer, config_fields, train_tokenizer


@pytest.fixture
def folder(tmp_path):
    """The tests' tokenizer of 512 tokens: <|im_start|> 1, <|im_end|> 2, which pads too."""
    checkpoints.tokenizer().save_pretrained(tmp_path)
    write(tmp_path, "config.json", {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 512})
    write(tmp_path, "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2})
    return tmp_path


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def test_all_is_well(folder):
    assert check_tokenizer(folder, 512) == {
        "tokens": 512,
        "embedding_rows": 512,
        "padding_rows": 0,
        "special_token_ids": {
            "config.json": {"bos": 1, "eos": 2, "pad": None},
            "generation_config.json": {"bos": 1, "eos": [2, 0], "pad": 2},
            "the tokenizer": {"bos": 1, "eos": 2, "pad": 2},
        },
        "warnings": [],
    }


def test_rows_that_no_token_has(folder):
    report = check_tokenizer(folder, 640)
    assert (report["tokens"], report["embedding_rows"], report["padding_rows"]) == (512, 640, 128)
    assert report["warnings"] == []


def test_a_token_of_ordinary_text_without_a_row(folder):
    with pytest.raises(ValueError, match="ids up to 511, but the embedding has only 511 rows; 1 tokens"):
        check_tokenizer(folder, 511)


def test_an_added_token_without_a_row_is_warned_about(folder):
    tokenizer = checkpoints.tokenizer()
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(folder)
    report = check_tokenizer(folder, 512)
    (warning,) = report["warnings"]
    assert "The tokenizer has ids up to 512" in warning and "'<tool>'" in warning
    assert "resize_token_embeddings(513)" in warning
    assert (report["tokens"], report["padding_rows"]) == (513, 0)


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    """As Llama 2 was first stored: tokenizer.model and no tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text").write_text("\n".join(topics.values()))
    options = {"vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(input=folder / "text", model_prefix=folder / "tokenizer", **options)
    write(folder, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    write(folder, "config.json", {"model_type": "llama"})
    return folder


def test_a_tokenizer_that_has_a_sentencepiece_model_only(sentencepiece_folder):
    assert check_tokenizer(sentencepiece_folder, 400)["tokens"] == 400


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
def test_without_its_packages_the_extra_that_has_them_is_named(package, sentencepiece_folder):
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from nexus_transformers.tokenization import check_tokenizer\n"
        f"try: check_tokenizer({str(sentencepiece_folder)!r}, 400)\n"
        "except ValueError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "pip install 'nexus-transformers[sentencepiece]'" in output


WARNINGS = {
    "eos of the tokenizer is another": (
        {"eos_token_id": 0},
        {"eos_token_id": 0},
        ["eos_token_id differs: config.json has 0, generation_config.json has 0, the tokenizer has 2."],
    ),
    "eos of the config is not in the list": (
        {"eos_token_id": 3},
        {"eos_token_id": [0, 2]},
        ["eos_token_id differs: config.json has 3, generation_config.json has 0 and 2, the tokenizer has 2."],
    ),
    "two kinds": (
        {"bos_token_id": 5, "eos_token_id": 2, "pad_token_id": 7},
        None,
        [
            "bos_token_id differs: config.json has 5, the tokenizer has 1.",
            "pad_token_id differs: config.json has 7, the tokenizer has 2.",
        ],
    ),
    "beyond the embedding": (
        {"eos_token_id": 2, "pad_token_id": -1},
        None,
        [
            "pad_token_id: config.json has -1, but the ids of the embedding are 0 to 511.",
            "pad_token_id differs: config.json has -1, the tokenizer has 2.",
        ],
    ),
    "no end": (
        {"eos_token_id": None},
        {},
        ["eos_token_id: only the tokenizer has one, 2; generation will not stop there."],
    ),
    "lists": ({"eos_token_id": [2, 0]}, {"eos_token_id": [0, 2, 5]}, []),
    "silence": ({"eos_token_id": 2}, {}, []),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_special_tokens_that_disagree(folder, case):
    config, generation_config, warnings = WARNINGS[case]
    write(folder, "config.json", config)
    if generation_config is None:
        (folder / "generation_config.json").unlink()
    else:
        write(folder, "generation_config.json", generation_config)
    assert check_tokenizer(folder, 512)["warnings"] == warnings


def test_an_encoder_need_not_stop(folder):
    """As ESM-2 has it."""
    write(folder, "config.json", {"eos_token_id": None})
    write(folder, "generation_config.json", {})
    assert check_tokenizer(folder, 512, generates=False)["warnings"] == []


def test_a_tokenizer_without_the_token_that_the_config_names(folder):
    """As Qwen2.5 has it: a bos in config.json, none in the tokenizer."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["bos_token"]
    write(folder, "tokenizer_config.json", settings)
    report = check_tokenizer(folder, 512)
    assert report["special_token_ids"]["the tokenizer"] == {"bos": None, "eos": 2, "pad": 2}
    assert report["warnings"] == [
        "bos_token_id differs: config.json has 1, generation_config.json has 1, the tokenizer has none."
    ]


def test_no_tokenizer(tmp_path):
    write(tmp_path, "config.json", {"eos_token_id": 600})
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    report = check_tokenizer(tmp_path, 512)
    assert (report["tokens"], report["padding_rows"]) == (None, None)
    assert report["warnings"] == [
        "There is no tokenizer beside the model.",
        "eos_token_id: config.json has 600, but the ids of the embedding are 0 to 511.",
    ]


@pytest.mark.parametrize(
    "auto_map",
    [{"AutoTokenizer": ["evil.Slow", None]}, {"AutoTokenizer": [None, "evil.Slow"]}, ["evil.Slow", None]],
)
@pytest.mark.parametrize("name", [None, "Slow"])
def test_remote_code_is_reported_and_not_run(folder, auto_map, name):
    (folder / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch(); class Slow: pass")
    write(folder, "tokenizer_config.json", {"auto_map": auto_map, **({"tokenizer_class": name} if name else {})})
    report = check_tokenizer(folder, 8)
    assert report["tokens"] is None
    assert report["warnings"][0] == "The tokenizer needs code of its own, evil.Slow, which was neither run nor checked."
    assert not (folder / "ran").exists()


def test_a_standard_class_is_loaded_in_place_of_remote_code(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder, "tokenizer_config.json", {**settings, "auto_map": {"AutoTokenizer": [None, "evil.Fast"]}})
    report = check_tokenizer(folder, 512)
    assert (report["tokens"], report["warnings"]) == (512, [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", '{"version": ', "Transformers cannot load the tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: is not valid JSON"),
        ("config.json", "[]", "config.json: is not a JSON object."),
        ("generation_config.json", '{"eos_token_id": "2"}', "eos_token_id='2' is not an id or a list of ids."),
    ],
)
def test_broken_files(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        check_tokenizer(folder, 512)


def test_a_trained_tokenizer_agrees_with_its_config(tmp_path):
    (tmp_path / "text").write_text("ab ab abab")
    for template in (None, CHAT_TEMPLATES["chatml"]):
        tokenizer = train_tokenizer([tmp_path / "text"], 261, template)
        tokenizer.save_pretrained(tmp_path)
        NexusConfig(num_layers=1, **config_fields(tokenizer)).save_pretrained(tmp_path)
        report = check_tokenizer(tmp_path, 261)
        assert (report["padding_rows"], report["warnings"]) == (0, [])
