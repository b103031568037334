"""Bad input ends in one clear sentence and exit status 1; the source is untouched, nothing that looks done is left."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoints
import gguf_file


def edit_config(**changes):
    def edit(source: Path) -> None:
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | changes))

    return edit


def edit_weights(edit_tensors):
    def edit(source: Path) -> None:
        tensors = load_file(source / "model.safetensors")
        edit_tensors(tensors)
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})

    return edit


def edit_index(edit_weight_map):
    def edit(source: Path) -> None:
        checkpoints.llama(source, max_shard_size="50KB")
        (source / "model.safetensors").unlink(missing_ok=True)
        index = json.loads((source / "model.safetensors.index.json").read_text())
        edit_weight_map(index["weight_map"], source)
        (source / "model.safetensors.index.json").write_text(json.dumps(index))

    return edit


def index_alone(content):
    def edit(source: Path) -> None:
        (source / "model.safetensors").unlink()
        (source / "model.safetensors.index.json").write_bytes(content)

    return edit


def tokenizer_of_sentencepiece(source: Path) -> None:
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (source / "tokenizer.model").write_bytes(b"a model of SentencePiece")


def truncate(source: Path) -> None:
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickle_only(source: Path) -> None:
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()


def adapter_only(source: Path) -> None:
    (source / "model.safetensors").rename(source / "adapter_model.safetensors")
    (source / "adapter_config.json").write_text("{}")


def fill(tensors, name, value):
    tensors[name].view(-1)[7] = value


def overwrite(name, content):
    return lambda source: (source / name).write_bytes(content)


def huge_header(source: Path) -> None:
    (source / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")


def lying_offsets(source: Path) -> None:
    """A header that says that a tensor lies beyond the end of the file."""
    content = (source / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[DOWN]["data_offsets"] = [0, 1 << 50]
    encoded = json.dumps(header).encode()
    (source / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])


def flip_bit_of_header(source: Path) -> None:
    content = bytearray((source / "model.safetensors").read_bytes())
    content[8] ^= 1 << 3
    (source / "model.safetensors").write_bytes(content)


def flip_exponent_bits(source: Path) -> None:
    """Of a float32 weight, whose exponent then is all ones."""

    def flip(tensors):
        tensors[DOWN].view(torch.int32).view(-1)[7] |= 0x7F800000

    edit_weights(flip)(source)


def duplicate_tensor(source: Path) -> None:
    edit_index(lambda index, source: None)(source)
    first, second = sorted(source.glob("model-0000*.safetensors"))[:2]
    tensors = load_file(second)
    save_file(tensors | {DOWN: torch.ones(48, 64)} | load_file(first), second, metadata={"format": "pt"})


def link(name, target):
    def make(source: Path) -> None:
        (source / name).unlink(missing_ok=True)
        (source / name).symlink_to(target)

    return make


def tokenizer_with_code(source: Path) -> None:
    config = json.loads((source / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "tokenizer.json").unlink()
    (source / "evil.py").write_text("raise SystemExit('this code was run')")


DOWN = "model.layers.1.mlp.down_proj.weight"
FAULTS = {
    "unknown architecture": (edit_config(model_type="mamba"), ["'mamba'"]),
    "no architecture": (lambda source: overwrite("config.json", b"{}")(source), ["model_type=None", "Known: "]),
    "no config": (lambda source: (source / "config.json").unlink(), ["has no config.json"]),
    "config is not JSON": (overwrite("config.json", b"{'a': 1"), ["config.json", "not valid JSON"]),
    "config is not text": (overwrite("config.json", b"\xff\xfe\x00"), ["config.json", "not valid JSON"]),
    "config is a list": (overwrite("config.json", b"[]"), ["config.json", "not a JSON object"]),
    "config of wrong types": (edit_config(hidden_size="wide"), ["config.json", "hidden_size"]),
    "unknown config field": (edit_config(logit_softcap=30.0), ["logit_softcap=30.0", "unknown"]),
    "unsupported value": (edit_config(rope_interleaved=True), ["rope_interleaved=True", "not supported"]),
    "unknown activation": (edit_config(hidden_act="swishish"), ["swishish"]),
    "quantized": (edit_config(quantization_config={"quant_method": "gptq"}), ["gptq", "dequantize"]),
    "missing tensor": (edit_weights(lambda t: t.pop(DOWN)), [DOWN, "lacks"]),
    "unmapped tensor": (
        edit_weights(lambda t: t.update({"model.rogue": torch.ones(2)})),
        ["'model.rogue'", "no place"],
    ),
    "tensor of a layer too many": (
        edit_weights(lambda t: t.update({DOWN.replace("1", "9"): t[DOWN].clone()})),
        ["model.layers.9.mlp", "do not belong together"],
    ),
    "misshapen tensor": (edit_weights(lambda t: t.update({DOWN: torch.ones(2, 3)})), [DOWN, "[2, 3]", "[48, 64]"]),
    "integer tensor": (edit_weights(lambda t: t.update({DOWN: t[DOWN].to(torch.int8)})), [DOWN, "I8"]),
    "NaN": (edit_weights(lambda t: fill(t, DOWN, float("nan"))), [DOWN, "NaN"]),
    "Inf": (edit_weights(lambda t: fill(t, DOWN, float("-inf"))), [DOWN, "infinite"]),
    "truncated shard": (truncate, ["model.safetensors", "truncated"]),
    "empty shard": (overwrite("model.safetensors", b""), ["model.safetensors", "not a whole"]),
    "garbage shard": (overwrite("model.safetensors", b"\x00" * 999), ["model.safetensors", "not a whole"]),
    "missing shard": (
        edit_index(lambda index, source: (source / index[DOWN]).unlink()),
        ["lacks the shard model-0000"],
    ),
    "tensor not in its shard": (
        edit_index(lambda index, source: index.update({"model.norm.bias": index[DOWN]})),
        ["'model.norm.bias'", "lacks tensor"],
    ),
    "index that leaves the folder": (
        edit_index(lambda index, source: index.update({DOWN: "../../etc/passwd"})),
        ["'../../etc/passwd'", "does not lie beside it"],
    ),
    "index without map": (index_alone(b"{}"), ["has no weight_map"]),
    "pickled weights": (pickle_only, ["pickled", "save_pretrained"]),
    "adapter only": (adapter_only, ["adapter", "merge_and_unload"]),
    "bit flipped in a header": (flip_bit_of_header, ["model.safetensors", "not a whole"]),
    "bits flipped in a weight": (flip_exponent_bits, [DOWN, "checkpoint is broken"]),
    "huge header": (huge_header, ["model.safetensors", "not a whole"]),
    "tensor beyond the end": (lying_offsets, ["model.safetensors", "not a whole"]),
    "tensor in two shards": (duplicate_tensor, ["model-00002", "download the checkpoint again"]),
    "index that leads to the root": (
        edit_index(lambda index, source: index.update({DOWN: "/etc/passwd"})),
        ["'/etc/passwd'", "does not lie beside it"],
    ),
    "index of numbers": (
        index_alone(b'{"weight_map": {"lm_head.weight": 7}}'),
        ["has no weight_map"],
    ),
    "config nested without end": (overwrite("config.json", b"[" * 100_000), ["config.json", "not valid JSON"]),
    "config with a number of a million digits": (
        overwrite("config.json", b'{"vocab_size": ' + b"9" * 1_000_000 + b"}"),
        ["config.json", "not valid JSON"],
    ),
    "a billion layers": (edit_config(num_hidden_layers=10**9), ["1000000000", "the weights have 3"]),
    "a vocabulary beyond all memory": (edit_config(vocab_size=2**62), ["config.json"]),
    "negative size": (edit_config(intermediate_size=-64), ["intermediate_size=-64"]),
    "weights linked to elsewhere": (
        lambda source: (
            shutil.move(source / "model.safetensors", source.parent / "elsewhere"),
            link("model.safetensors", source.parent / "elsewhere")(source),
        ),
        ["model.safetensors", "symbolic link"],
    ),
    "tokenizer file linked to a secret": (link("vocab.txt", "/etc/passwd"), ["vocab.txt", "symbolic link"]),
    "a folder where a file should be": (
        lambda source: ((source / "config.json").unlink(), (source / "config.json").mkdir()),
        ["config.json", "cannot be read"],
    ),
    "architecture of foreign code": (
        edit_config(model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Evil"}),
        ["'evil'", "Known: "],
    ),
    "tokenizer of foreign code": (tokenizer_with_code, ["tokenizer", "code of its own"]),
    "tokenizer of SentencePiece, damaged": (tokenizer_of_sentencepiece, ["cannot load the tokenizer"]),
    "weights in a dtype of quantized models": (
        edit_weights(lambda t: [t.update({name: tensor.to(torch.float8_e4m3fn)}) for name, tensor in list(t.items())]),
        ["F8_E4M3", "Dequantize"],
    ),
    "weights in such a dtype, and no dtype in the config": (
        lambda source: (edit_config(dtype=None)(source), FAULTS["weights in a dtype of quantized models"][0](source)),
        ["F8_E4M3", "Dequantize"],
    ),
    "no tensors": (
        lambda source: (
            overwrite("config.json", b'{"model_type": "llama", "vocab_size": 512}')(source),
            save_file({}, source / "model.safetensors", metadata={"format": "pt"}),
        ),
        ["hold no tensors"],
    ),
    "notes on an adapter": (
        lambda source: (source / "model.safetensors").rename(source / "adapter_notes.md"),
        ["has no weights"],
    ),
    "what Trainer writes beside weights": (
        lambda source: (source / "model.safetensors").rename(source / "training_args.bin"),
        ["has no weights"],
    ),
    "weights of an adapter": (
        lambda source: (source / "model.safetensors").rename(source / "adapter_model.safetensors"),
        ["holds an adapter only", "merge_and_unload"],
    ),
    "a Nexus model": (edit_config(model_type="nexus"), ["is a Nexus model already", "--to-source"]),
    "no weights": (lambda source: (source / "model.safetensors").unlink(), ["has no weights"]),
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def assert_one_sentence(status, output, errors, parts):
    assert status == 1
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert not re.search(r"[.:;,]\)\.|\.\.(?![./])|: \.(?!/)", errors), "punctuation twice"
    for part in parts:
        assert part in errors


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_source(fault, llama_folder, tmp_path, nexus):
    break_it, parts = FAULTS[fault]
    source = Path(shutil.copytree(llama_folder, tmp_path / "source"))
    break_it(source)
    before = snapshot(source)
    assert_one_sentence(*nexus("convert", source, tmp_path / "out"), parts)
    assert snapshot(source) == before
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "elsewhere"}


def test_there_are_many_faults():
    assert len(FAULTS) >= 45


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--order", "two"], ["--order two", "2,1,1,1"]),
        (["--order", "2,1"], ["--order", "2 orders", "3 layers"]),
        (["--order", "0"], ["attention_order=0", "at least 1"]),
        (["--dtype", "int4"], ["--dtype int4", "bfloat16"]),
        (["--max-shard-size", "large"], ["--max-shard-size large", "5GB"]),
        (["--max-shard-size=-5GB"], ["--max-shard-size -5GB", "5GB"]),
        (["--gate-init", "nan"], ["--gate-init nan"]),
        (["--gate-init", "inf", "--order", "1"], ["--gate-init inf"]),
        (["--gate-init", "1e39"], ["--gate-init 1e+39", "float32"]),
        (["--gate-init", "0.5", "--order", "1"], ["--gate-init 0.5: has no effect"]),
        (["--gate-init", "0.5", "--no-gate"], ["--gate-init 0.5: has no effect with --no-gate"]),
        (["--inner-window", str(10**20)], ["inner_window=100000000000000000000", "below 2**62"]),
        (["--revision", "v2"], ["--revision v2", "for a Hub id only"]),
        (["--to-source", "--family", "foo"], ["is not a Nexus model"]),
        (["--to-source"], ["is not a Nexus model"]),
        (["--to-source", "--order", "3"], ["--order", "no meaning with --to-source"]),
        (["--to-source", "--inner-attention", "self"], ["--inner-attention", "no meaning with --to-source"]),
        (["--to-source", "--no-inner-output-projection"], ["--inner-output-projection", "no meaning with --to-source"]),
        (["--to-source", "--refine", "key"], ["--refine", "no meaning with --to-source"]),
        (["--to-source", "--seed", "0"], ["--seed", "no meaning with --to-source"]),
        (["--inner-attention", "tree"], ["inner_attention='tree'", "'shared', 'separate' or 'self'"]),
        (["--inner-attention", "separate", "--order", "3"], ["attention_order=3", "up to order 2"]),
        (["--inner-attention", "self", "--refine", "query,value"], ["refine_value=True", "queries and keys only"]),
        (["--inner-attention", "self", "--inner-output-projection"], ["inner_output_projection=True", "turn it off"]),
        (["--no-inner-output-projection"], ["= 64, but hidden_size=48", "Set inner_output_projection=True"]),
        (["--refine", "query,values"], ["--refine query,values", "give any of query, key, value"]),
        (["--refine", ""], ["--refine", "give any of query, key, value"]),
        (["--refine", "value", "--order", "3"], ["attention_order=3", "values are refined once"]),
        (["--seed", "1"], ["--seed 1: has no effect", "--inner-attention separate"]),
        (["--seed", "0", "--inner-attention", "separate", "--order", "1"], ["--seed 0: has no effect"]),
    ],
)
def test_bad_options(options, parts, llama_folder, tmp_path, nexus):
    assert_one_sentence(*nexus("convert", llama_folder, tmp_path / "out", *options), parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("./nowhere", ["./nowhere", "no such folder"]),
        ("nowhere", ["nowhere", "no such folder"]),
        ("nobody/nothing", ["nobody/nothing"]),  # the Hub is out of reach in the tests
    ],
)
def test_source_that_is_not_there(source, parts, tmp_path, nexus):
    assert_one_sentence(*nexus("convert", source, tmp_path / "out"), parts)


def test_broken_and_ambiguous_gguf_files(tmp_path, nexus):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + b"\x03" * 100)
    assert_one_sentence(*nexus("convert", tmp_path / "a.gguf", tmp_path / "out"), ["a.gguf", "cannot read"])
    (tmp_path / "b.gguf").write_bytes(b"")
    assert_one_sentence(*nexus("convert", tmp_path, tmp_path.parent / "out"), ["a.gguf, b.gguf", "path of one of them"])


def test_gguf_file_without_the_package_that_reads_it(tmp_path, nexus, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)  # importing it fails
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    parts = ["a.gguf: reading GGUF needs the package gguf: pip install 'nexus-transformers[gguf]'."]
    assert_one_sentence(*nexus("convert", tmp_path / "a.gguf", tmp_path / "out"), parts)


def test_gguf_file_with_a_broken_tokenizer(tmp_path, nexus):
    file = gguf_file.write(tmp_path / "source" / "a.gguf", tokenizer="broken")
    parts = ["a.gguf: Transformers cannot read its tokenizer (", "Convert the original checkpoint"]
    assert_one_sentence(*nexus("convert", file, tmp_path / "out"), parts)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_output_that_may_not_be_written(llama_folder, tmp_path, nexus):
    source = Path(shutil.copytree(llama_folder, tmp_path / "source"))
    before = snapshot(source)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for out, parts in [
        (source, ["within the source"]),
        (source / "nexus", ["within the source"]),
        (tmp_path, ["within the source", "holds it"]),
        (tmp_path / "file", ["is a file"]),
        (tmp_path / "file" / "out", ["could not be written"]),
        (tmp_path / "link", ["symbolic link"]),
        (Path("/proc/nexus"), ["/proc/nexus"]),  # as read-only as a file system can be
    ]:
        assert_one_sentence(*nexus("convert", source, out, "--overwrite"), parts)
    assert snapshot(source) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_no_space_while_writing(llama_folder, tmp_path):
    """The operating system refuses to let any file grow beyond 100 kB, as a full disk would."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "from nexus_transformers.conversion_scripts.cli import main; main()"
    )
    # -B: Python would cut the bytecode that it keeps, too, and not notice
    command = [sys.executable, "-B", "-c", script, "convert", llama_folder, tmp_path / "out"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert_one_sentence(process.returncode, process.stdout, process.stderr, ["could not be written"])
    assert list(tmp_path.iterdir()) == []


def test_no_space_seen_before_writing(llama_folder, tmp_path):
    from nexus_transformers.conversion_scripts.checkpoint.place import check_free_space
    from nexus_transformers.errors import CheckpointError

    with pytest.raises(CheckpointError, match=r"GB free, but the model needs 1000000000\.00 GB"):
        check_free_space(tmp_path / "a" / "b", 10**18)
    check_free_space(tmp_path / "a" / "b", 1)


@pytest.fixture
def as_nobody(nexus):
    """The `nexus` command as a user without permissions, in a folder that others can enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody without permissions")

    def run(*arguments):
        os.seteuid(65534)
        try:
            return nexus(*arguments)
        finally:
            os.seteuid(0)

    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        Path(place, "writable").mkdir()
        Path(place, "writable").chmod(0o777)
        yield Path(place), run


@pytest.mark.parametrize("what", ["output", "model.safetensors", "", "LICENSE", "tokenizer.json", "vocab.txt"])
def test_no_permission(what, llama_folder, nexus, as_nobody):
    """What may not be read or written is named, and nothing else; "" is the source's folder itself."""
    place, run = as_nobody
    source = Path(shutil.copytree(llama_folder, place / "source"))
    for name in ("LICENSE", "vocab.txt"):
        (source / name).write_text("x")
    for file in source.iterdir():
        file.chmod(0o644)
    assert nexus("convert", source, place / "first", "--no-verify")[0] == 0  # all is imported by now
    shutil.copytree(place / "first", place / "writable" / "model")
    (place / "writable" / "model").chmod(0o777)
    if what != "output":
        (source / what).chmod(0o600)
    out = place / "out" if what == "output" else place / "writable" / "out"
    named = {"output": f"{out}: ", "tokenizer.json": f"{source}: ", "": f"{source}: "}
    named = named.get(what, f"{source / what}: ")
    assert_one_sentence(*run("convert", source, out, "--no-verify"), [named, "ermission denied"])
    assert not out.exists()
    if what in ("model.safetensors", ""):
        result = run("verify", source, place / "writable" / "model")
        assert_one_sentence(*result, [named, "ermission denied"])


@pytest.mark.parametrize("file", ["modeling_nexus.py", "config.json"])
def test_no_permission_to_read_a_nexus_model(file, llama_folder, converted, nexus, as_nobody):
    place, run = as_nobody
    assert nexus("inspect", converted, "Hello", "--out", place / "page")[0] == 0  # all is imported by now
    source, model = (
        Path(shutil.copytree(each, place / name)) for each, name in ((llama_folder, "a"), (converted, "b"))
    )
    for each in (*source.iterdir(), *model.iterdir()):
        each.chmod(0o644)
    model.chmod(0o777)
    (model / file).chmod(0o600)
    for command in (["verify", source, model], ["inspect", model, "Hello"], ["convert", model, "out", "--to-source"]):
        assert_one_sentence(*run(*command), [f"{model / file}: cannot be read", "ermission denied"])


@pytest.mark.parametrize("file", ["model.safetensors", "README.md", "modeling_nexus.py", "tokenizer.json"])
def test_no_permission_to_read_what_is_pushed(file, converted, as_nobody, monkeypatch):
    place, run = as_nobody
    monkeypatch.setenv("HF_TOKEN", "hf_dummy")  # nobody may not read root's
    model = Path(shutil.copytree(converted, place / "model"))
    (model / file).chmod(0o600)
    assert_one_sentence(*run("push", model, "someone/nexus"), [f"{model / file}: cannot be read", "ermission denied"])


def test_of_two_tensors_that_become_one_none_is_lost(tmp_path, nexus):
    """The names of a model of images and of its language model alone, both of which Transformers reads."""
    source = checkpoints.save("gemma3", tmp_path / "source")
    name, other = (f"{each}.layers.0.mlp.down_proj.weight" for each in ("model.language_model", "language_model.model"))

    def twice(tensors):
        name_there, other_one = (name, other) if name in tensors else (other, name)
        tensors[other_one] = torch.zeros_like(tensors[name_there])

    edit_weights(twice)(source)
    result = nexus("convert", source, tmp_path / "out", "--no-verify")
    assert_one_sentence(*result, ["holds", "twice", repr(name), repr(other)])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["verify", "{model}", "{source}"], ["is a Nexus model already"]),
        (["convert", "{model}", "out"], ["is a Nexus model already", "--to-source"]),
        (["verify", "{source}", "nothere"], ["nothere: no such folder"]),
        (["verify", "{source}", "user/name"], ["user/name: no such folder", "download"]),
        (["verify", "{source}", "{model}/config.json"], ["config.json: no such folder"]),
        (["verify", "~nosuchuser/m", "{model}"], ["~nosuchuser/m: has no home folder"]),
        (["inspect", "~nosuchuser/m", "Hello"], ["~nosuchuser/m: has no home folder"]),
        (["convert", "user/name", "out", "--to-source"], ["user/name: no such folder"]),
        (["convert", "{model}", "out", "--to-source", "--family", "foo"], ["--family='foo' is not an architecture"]),
        (
            ["convert", "{model}", "out", "--to-source", "--family", "mixtral"],
            ["--family='mixtral' cannot be converted"],
        ),
    ],
)
def test_what_is_at_fault_is_named(arguments, parts, llama_folder, converted, tmp_path, nexus, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [each.format(model=converted, source=llama_folder) for each in arguments]
    assert_one_sentence(*nexus(*arguments), parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"head_dim": -1}, {"hidden_act": "x"}, {"attention_dropout": 1.5}])
def test_a_setting_that_makes_no_model_is_told_by_verify_as_by_convert(
    changes, llama_folder, converted, tmp_path, nexus
):
    source = Path(shutil.copytree(llama_folder, tmp_path / "source"))
    edit_config(**changes)(source)
    of_convert = nexus("convert", source, tmp_path / "out")
    assert_one_sentence(*of_convert, [str(source)])
    model = shutil.copytree(converted, tmp_path / "model")
    assert nexus("verify", source, model) == of_convert
