"""A tokenizer trained from scratch: lossless for every text, deterministic, loaded by everyone."""

import json
import os
import random
import resource
import subprocess
import sys
import unicodedata
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from isolated import run_isolated
from nexus_transformers import NexusConfig
from nexus_transformers.tokenization import CHAT_TEMPLATES, SPECIAL_TOKENS, config_fields, train
from nexus_transformers.tokenization.train import MIN_VOCAB_SIZE, train_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 12 + 30?"},
    {"role": "assistant", "content": "42"},
]
RENDERED = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n"
    "<|im_start|>assistant\n42<|im_end|>\n"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two files of Python's own documentation, and other scripts."""
    folder = tmp_path_factory.mktemp("corpus")
    files = [folder / "one.txt", folder / "two.txt"]
    files[0].write_bytes("\r\n".join([topics["class"], topics["exceptions"]]).encode())
    files[1].write_bytes((topics["execmodel"] + "日本語のテキスト。हिन्दी के शब्द। Ελληνικά 🧠\n" * 20).encode())
    return files


@pytest.fixture(scope="module")
def trained(corpus):
    return train_tokenizer(corpus, 600, CHAT_TEMPLATES["chatml"])


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save_pretrained(folder)
    return folder


# --- Lossless


def texts(seed: int, count: int) -> list[str]:
    """Every kind of text that a tokenizer might change: all of Unicode, and what normalisers and clean-ups look for."""
    generator = random.Random(seed)
    kinds = [
        lambda: chr(generator.randrange(128)),
        lambda: chr(generator.choice([0, 9, 10, 11, 12, 13, 0x1C, 0x85, 0xA0, 0x2028, 0x3000, 0x200B, 0xFEFF, 0xFFFD])),
        lambda: chr(generator.randrange(0x300, 0x370)),  # combining marks
        lambda: chr(generator.randrange(0x20, 0xD800)),
        lambda: chr(generator.randrange(0xE000, 0x110000)),  # private use, planes beyond the first, non-characters
        lambda: generator.choice([*SPECIAL_TOKENS, "<|im_", "|>", "Ġ", "Ċ", "▁", "##", "</s>", "<0x0A>", "[UNK]"]),
        lambda: generator.choice([" .", " ,", " n't", " 's", "\ufb01", "\u212b", "A\u030a", "\uff21", "\u00bd"]),
        lambda: generator.choice(["  ", "\r\n", "\U0001f469\u200d\U0001f4bb", "-0"]),
        lambda: generator.choice(["the ", "class ", "日本語", "def f(x):\n\treturn"]),
    ]
    strings = ["".join(generator.choice(kinds)() for _ in range(generator.randrange(40))) for _ in range(count)]
    for _ in range(count):
        data = generator.randbytes(generator.randrange(1, 5))
        try:
            strings.append(data.decode("utf-8"))
        except UnicodeDecodeError:
            pass  # no text
    return strings


def first_loss(tokenizer: PreTrainedTokenizerFast, strings: list[str], **kwargs) -> str | None:
    """The first text that is not what it was after encoding and decoding."""
    return next((text for text in strings if tokenizer.decode(tokenizer(text, **kwargs)["input_ids"]) != text), None)


@pytest.mark.parametrize("split_special_tokens", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_text_comes_back(folder, seed, split_special_tokens):
    strings = texts(seed, 1000)
    assert len(strings) > 1200
    assert first_loss(AutoTokenizer.from_pretrained(folder), strings, split_special_tokens=split_special_tokens) is None


def test_every_assigned_character_comes_back(folder):
    assigned = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")]
    assert len(assigned) > 140_000
    strings = ["".join(assigned[start : start + 500]) for start in range(0, len(assigned), 500)]
    assert first_loss(AutoTokenizer.from_pretrained(folder), strings) is None


def test_tokens_are_the_bytes_of_the_text(trained):
    """Also where a token ends within a character; and all 256 bytes are tokens, those too that no UTF-8 has."""
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    vocabulary = trained.get_vocab()
    assert set(byte_of) <= set(vocabulary)
    for text in texts(3, 200):
        tokens = trained.convert_ids_to_tokens(trained(text, split_special_tokens=True)["input_ids"])
        assert bytes(byte_of[character] for token in tokens for character in token) == text.encode()


@pytest.mark.parametrize("normalizer", [normalizers.NFC(), normalizers.NFKC(), normalizers.Strip()])
def test_the_fuzz_finds_a_loss(trained, normalizer):
    lossy = Tokenizer.from_str(trained.backend_tokenizer.to_str())
    lossy.normalizer = normalizer
    assert first_loss(PreTrainedTokenizerFast(tokenizer_object=lossy), texts(0, 1000)) is not None


def test_the_fuzz_finds_a_prefix_space(trained):
    lossy = Tokenizer.from_str(trained.backend_tokenizer.to_str())
    lossy.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert first_loss(PreTrainedTokenizerFast(tokenizer_object=lossy), texts(0, 1000)) is not None


# --- Words


def words(tokenizer, text):
    return [text[start:end] for _, (start, end) in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def test_words(trained):
    assert words(trained, "I'll pay 1234.50\n\n  now!?") == [
        *("I", "'ll", " pay", " ", "1", "2", "3", "4", ".", "5", "0", "\n\n", " ", " now", "!?")
    ]
    assert words(trained, "हिन्दी के") == ["हिन्दी", " के"]


@pytest.mark.parametrize("piece", [1, 2, 7, 64])
def test_pieces_are_cut_where_words_end(trained, tmp_path, monkeypatch, piece):
    """Training on the pieces is training on the whole, and no character is lost, however small they are."""
    monkeypatch.setattr(train, "PIECE", piece)
    text = topics["class"][:3000] + "".join(texts(4, 100))
    file = tmp_path / "text"
    file.write_bytes(text.encode())
    advanced = []
    pieces = list(train.read_pieces(file, advanced.append))
    assert "".join(pieces) == text
    assert sum(advanced) == len(text.encode())
    if piece == 64:  # smaller ones have words longer than a piece, which are cut
        plain = topics["class"][:3000]
        file.write_text(plain)
        pieces = list(train.read_pieces(file, advanced.append))
        assert len(pieces) > 20
        assert [word for piece in pieces for word in words(trained, piece)] == words(trained, plain)


# --- Training


def test_vocabulary_and_special_tokens(trained):
    assert len(trained) == trained.vocab_size == 600
    assert [trained.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert (trained.bos_token, trained.eos_token, trained.pad_token) == ("<|endoftext|>", "<|im_end|>", "<|pad|>")
    assert trained("class")["input_ids"] == trained("class", add_special_tokens=False)["input_ids"]
    assert len(trained(" class")["input_ids"]) == 1  # it did learn


def test_end_token_without_chat(corpus):
    for template in (None, "{{ messages[0]['content'] + eos_token }}"):
        tokenizer = train_tokenizer(corpus[:1], 300, template)
        assert tokenizer.eos_token == "<|endoftext|>"
        assert tokenizer.chat_template == template


def test_config_fields(trained):
    config = NexusConfig(num_layers=2, **config_fields(trained))
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (600, 1, 2, 0)
    defaults = NexusConfig()
    assert (defaults.bos_token_id, defaults.eos_token_id) == (config.bos_token_id, config.eos_token_id)


def test_special_tokens_in_a_text(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "a<|im_end|> b"
    assert 2 in tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == "a b"
    as_text = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert 2 not in as_text
    assert tokenizer.decode(as_text, skip_special_tokens=True) == text


def test_no_learned_token_spells_a_special_token(tmp_path):
    file = tmp_path / "text"
    file.write_text("".join(SPECIAL_TOKENS) * 100)
    tokenizer = train_tokenizer([file], 400)
    for token in SPECIAL_TOKENS:
        ids = tokenizer(token, split_special_tokens=True)["input_ids"]
        assert len(ids) > 1
        assert tokenizer.decode(ids) == token


def test_same_files_same_bytes(corpus, tmp_path):
    """In a process with another seed of hashes and another number of threads, and the files in another order."""
    script = (
        "import sys; from nexus_transformers.tokenization import train_tokenizer; "
        "train_tokenizer(sys.argv[2:], 600).save_pretrained(sys.argv[1])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(tmp_path / "a"), *map(str, corpus)]
    subprocess.run(command, env=environment, check=True)
    train_tokenizer(corpus[::-1], 600).save_pretrained(tmp_path / "b")
    saved = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "ab"]
    assert set(saved[0]) == {"tokenizer.json", "tokenizer_config.json"}
    assert saved[0] == saved[1]


def test_text_that_cannot_fill_the_vocabulary(tmp_path):
    file = tmp_path / "text"
    file.write_text("ab ab")
    tokenizer = train_tokenizer([file], 5000)
    assert len(tokenizer) == MIN_VOCAB_SIZE + 1
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1


def test_it_loads_without_our_package_and_without_remote_code(folder, tmp_path):
    script = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)
chat = json.loads(sys.argv[2])
text = "naïve 日本語\\x00 <|im_end|>"
batch = tokenizer(["one", "two three four"], padding=True)
masked = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
print(json.dumps({
    "chat": tokenizer.apply_chat_template(chat, tokenize=False),
    "prompt": tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True),
    "equal": tokenizer.decode(tokenizer(text)["input_ids"]) == text,
    "size": len(tokenizer),
    "module": type(tokenizer).__module__.split(".")[0],
    "padded": batch["input_ids"][0][-1],
    "said": tokenizer.decode([i for i, m in zip(masked["input_ids"], masked["assistant_masks"]) if m]),
}))
"""
    result = run_isolated(script, tmp_path, folder, json.dumps(CHAT))
    assert result == {
        "chat": RENDERED,
        "prompt": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>assistant\n",
        "equal": True,
        "size": 600,
        "module": "transformers",
        "padded": 0,
        "said": "42<|im_end|>",
    }


# --- Refusals


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"good \xff bad", 5),
        (b"caf\xe9", 3),  # Latin-1, at the very end
        (b"ab\xed\xa0\x80", 2),  # a lone surrogate
        (b"x" * 70000 + b"\xc3\x28", 70000),  # beyond the first piece
        ("é".encode() * 32768 + b"\xf0\x9f", 65536),  # cut off
        (b"x" * 65535 + b"\xc3" + b"\xc3", 65535),  # begun in one piece, wrong in the next
        ("text".encode("utf-16"), 0),
    ],
)
def test_a_file_that_is_not_utf8(tmp_path, content, offset):
    file = tmp_path / "text"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{file}: is not UTF-8 at byte {offset}; "):
        train_tokenizer([file], 300)


def test_a_character_on_the_border_of_two_pieces(tmp_path):
    file = tmp_path / "text"
    for before in range(65533, 65537):
        content = "x" * before + "🧠 end"
        file.write_bytes(content.encode())
        assert "".join(train.read_pieces(file, lambda amount: None)) == content


REFUSED = {
    "missing": (["missing.txt"], {}, "missing.txt: no such file."),
    "folder": (["."], {}, ".: is a folder; give text files."),
    "empty": (["empty.txt", "empty.txt"], {}, "there is no text."),
    "not UTF-8": (["good.txt", "latin.txt"], {}, "latin.txt: is not UTF-8 at byte 3; "),
    "too small": (["good.txt"], {"--vocab-size": 259}, "must be at least 260, for the 256 bytes and 4 special tokens."),
    "negative": (["good.txt"], {"--vocab-size": -1}, "must be at least 260"),
    "too large": (["good.txt"], {"--vocab-size": 10**20}, "must be at most 16777216."),
    "no number": (["good.txt"], {"--vocab-size": "many"}, "--vocab-size many: give a whole number."),
    "no length": (["good.txt"], {"--model-max-length": "long"}, "--model-max-length long: give a whole number."),
    "zero length": (["good.txt"], {"--model-max-length": 0}, "model_max_length=0: must be at least 1."),
    "no template": (["good.txt"], {"--chat-template": "chatmal"}, "no such file, and no template of ours (chatml)."),
    "folder as template": (["good.txt"], {"--chat-template": "."}, ".: cannot be read (Is a directory)."),
    "binary template": (["good.txt"], {"--chat-template": "latin.txt"}, "latin.txt: is not UTF-8 at byte 3."),
    "not Jinja": (["good.txt"], {"--chat-template": "broken.jinja"}, "chat template: does not render"),
    "not a template": (["good.txt"], {"--chat-template": "good.txt"}, "leaves out what the user says"),
    "output is a file": (["good.txt"], {"--out": "good.txt"}, "good.txt: is a file; choose a folder to write to."),
    "output within a file": (["good.txt"], {"--out": "good.txt/a"}, "lies within the source good.txt"),
    "output occupied": (["good.txt"], {"--out": "occupied"}, "occupied: is not empty and is not a tokenizer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, nexus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good.txt").write_text("some good text, some good text")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("empty.txt").touch()
    Path("broken.jinja").write_text("{% for message in messages %}")
    Path("occupied").mkdir()
    Path("occupied/thesis.txt").write_text("mine")
    before = snapshot(tmp_path)
    files, options, message = REFUSED[case]
    options = {"--out": "out", "--vocab-size": 300, **options}
    code, stdout, stderr = nexus("tokenizer", "train", *files, *(part for option in options.items() for part in option))
    assert code == 1
    assert stdout == ""
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert message in stderr
    assert snapshot(tmp_path) == before


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_file_that_cannot_be_read(nexus, corpus, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    code, _, stderr = nexus("tokenizer", "train", corpus[0], "--out", tmp_path / "out", "--vocab-size", 300)
    assert (code, stderr) == (1, f"error: {corpus[0]}: cannot be read (Permission denied).\n")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(nexus, corpus, tmp_path, monkeypatch):
    """Files cannot grow beyond 1 kB, which the tokenizers library reports in its own way."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would be cut, too
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code, _, stderr = nexus("tokenizer", "train", corpus[0], "--out", tmp_path / "out", "--vocab-size", 300)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert stderr.startswith(f"error: {tmp_path / 'out'}: could not be written (") and stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_interrupted(nexus, corpus, tmp_path, monkeypatch):
    def interrupt(*arguments, **kwargs):
        raise KeyboardInterrupt

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr("nexus_transformers.conversion_scripts.tokenizer_command.train_tokenizer", interrupt)
    monkeypatch.setattr("os._exit", leave)
    code, _, stderr = nexus("tokenizer", "train", corpus[0], "--out", tmp_path / "out", "--vocab-size", 300)
    assert (code, stderr) == (130, "Aborted.\n")
    assert list(tmp_path.iterdir()) == []


# --- The command


def test_command(nexus, corpus, tmp_path):
    out = tmp_path / "out"
    command = ["tokenizer", "train", *corpus, "--out", out, "--vocab-size", 400, "--chat-template", "chatml"]
    code, stdout, stderr = nexus(*command, "--model-max-length", 128)
    assert (code, stderr) == (0, "")
    assert f"{out}: 400 tokens.\n" in stdout
    assert "NexusConfig(vocab_size=400, bos_token_id=1, eos_token_id=2, pad_token_id=0, ...)" in stdout
    assert {file.name for file in out.iterdir()} == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.model_max_length == 128
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == RENDERED
    assert unicodedata.normalize("NFC", "e\u0301") != tokenizer.decode(tokenizer("e\u0301")["input_ids"]) == "e\u0301"


def test_command_with_a_template_file_and_a_warning(nexus, tmp_path):
    (tmp_path / "text").write_text("ab ab")
    (tmp_path / "template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    code, stdout, stderr = nexus(
        *("tokenizer", "train", tmp_path / "text", "--out", tmp_path / "out", "--vocab-size", "5000"),
        *("--chat-template", tmp_path / "template.jinja"),
    )
    assert code == 0
    assert ": 261 tokens." in stdout and "vocab_size=261," in stdout
    assert stderr.startswith("warning: ") and "for 5000 tokens; the tokenizer has 261." in stderr
    assert stderr.count("\n") == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "<|endoftext|>ab"


def test_overwrite_replaces_a_tokenizer_and_nothing_else(nexus, corpus, tmp_path):
    out = tmp_path / "out"
    command = ["tokenizer", "train", corpus[0], "--out", out, "--vocab-size"]
    assert nexus(*command, 300)[0] == 0
    before = snapshot(tmp_path)
    assert "pass --overwrite" in nexus(*command, 310)[2]
    assert snapshot(tmp_path) == before
    assert nexus(*command, 310, "--overwrite")[0] == 0
    assert len(AutoTokenizer.from_pretrained(out)) == 310
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]

    (out / "config.json").write_text("{}")
    before = snapshot(tmp_path)
    assert "holds config.json, which this command did not write" in nexus(*command, 320, "--overwrite")[2]
    assert snapshot(tmp_path) == before
    (out / "config.json").unlink()
    (out / "vocab.txt").write_text("text to train on, in a place where it would be lost")
    before = snapshot(tmp_path)
    command[2] = out / "vocab.txt"
    assert "within the source" in nexus(*command, 320, "--overwrite")[2]
    assert snapshot(tmp_path) == before
    (out / "tokenizer.json").unlink()
    command[2] = corpus[0]
    assert "is not a tokenizer" in nexus(*command, 320, "--overwrite")[2]
