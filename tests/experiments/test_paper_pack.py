"""Packing of text into rows, and the sentences that end the scripts on bad input."""

import gzip
import json
from itertools import chain, islice
from types import SimpleNamespace

import pytest

pytest.importorskip("datasets")
pytest.importorskip("trl")
import torch
from datasets import load_from_disk
from safetensors.torch import load_file

import checkpoints
from experiments.paper import pack, pretrain, record, sft, toy
from nexus_transformers import NexusConfig

TEXTS = ["def f(x):\n    return x", "", "class A: pass\n" * 40, "é", "end"]


def stream(tokenizer) -> list[int]:
    return [token for text in TEXTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]


@pytest.fixture
def tokenizer(tmp_path):
    tokenizer = checkpoints.tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tokenizer


@pytest.mark.parametrize("length", [1, 7, 64])
def test_rows_are_the_documents_one_after_the_other(tokenizer, length):
    rows = [row["input_ids"] for row in pack.cut(iter(TEXTS), tokenizer, length, None)]
    assert {len(row) for row in rows} == {length}
    expected = stream(tokenizer)
    assert [*chain(*rows)] == expected[: len(expected) - len(expected) % length]
    assert list(pack.cut(iter(TEXTS), tokenizer, length, 2)) == [{"input_ids": row} for row in rows[:2]]


def test_nothing_is_lost_between_groups_of_documents(tokenizer):
    texts = [f"{i} " for i in range(2500)]
    rows = [row["input_ids"] for row in pack.cut(iter(texts), tokenizer, 64, None)]
    expected = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert [*chain(*rows)] == expected[: len(rows) * 64]
    assert len(expected) - len(rows) * 64 < 64


def test_the_stream_is_read_no_further_than_needed(tokenizer):
    def endless():
        while True:
            yield "more text"

    texts = endless()
    assert len(list(pack.cut(texts, tokenizer, 8, 5))) == 5
    assert list(islice(texts, 1)) == ["more text"]


def packed(tmp_path, source, *options) -> dict:
    arguments = [source, tmp_path / "out", "--tokenizer", tmp_path / "tokenizer", "--length", 8, "--validation", 2]
    pack.main([str(argument) for argument in (*arguments, *options)])
    rows = load_from_disk(tmp_path / "out")
    assert not (tmp_path / "out" / "cache").exists()
    assert json.loads((tmp_path / "out" / "pack.json").read_text())["rows"] == len(rows["train"])
    return {name: [row["input_ids"] for row in rows[name]] for name in rows}


def test_json_lines_compressed_and_a_folder_of_text_give_the_same_rows(tokenizer, tmp_path):
    with gzip.open(tmp_path / "texts.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "other": 1}) + "\n" for text in TEXTS)
    rows = packed(tmp_path, tmp_path / "texts.jsonl.gz")
    assert len(rows["validation"]) == 2
    assert [*chain(*rows["validation"], *rows["train"])] == stream(tokenizer)[: 8 * (2 + len(rows["train"]))]

    (tmp_path / "folder").mkdir()
    for i, text in enumerate(TEXTS):
        if text:  # an empty file is no document
            (tmp_path / "folder" / f"{i}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "out").rename(tmp_path / "first")
    words = [text for text in TEXTS if text]
    expected = [token for text in words for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = packed(tmp_path, tmp_path / "folder", "--tokens", 80)
    assert len(rows["train"]) == 10
    assert [*chain(*rows["validation"], *rows["train"])] == expected[: 8 * 12]


def test_bad_input_to_pack_ends_in_one_sentence(tokenizer, tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"body": "x"}) + "\n")
    (tmp_path / "mixed").mkdir()
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / "mixed" / name).write_text("{}")
    for source, options, message in (
        (tmp_path / "missing.txt", [], "does not exist"),
        (tmp_path / "texts.jsonl", [], "has no column 'text', only body"),
        (tmp_path / "texts.jsonl", ["--column", "body"], "would be for validation; give more text"),
        (tmp_path / "mixed", [], "must hold files of one kind"),
        ("nobody/nothing", [], "cannot be had from the Hub"),
    ):
        with pytest.raises(SystemExit, match=message):
            packed(tmp_path, source, *options)
        assert not (tmp_path / "out").exists()
    for name in ("length", "validation"):
        with pytest.raises(SystemExit, match=f"pack: --{name} 0: give 1 or more"):
            packed(tmp_path, tmp_path / "texts.jsonl", f"--{name}", "0")
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="out exists; delete it"):
        packed(tmp_path, tmp_path / "texts.jsonl")


def test_a_step_has_its_sequences_whatever_the_number_of_processes():
    for processes, batch, accumulation in ((1, 2, 4), (2, 2, 2), (4, 1, 2)):
        training = SimpleNamespace(per_device_train_batch_size=batch, world_size=processes)
        record.set_accumulation(training, 8, "pretrain")
        assert training.gradient_accumulation_steps == accumulation
    with pytest.raises(SystemExit, match="8 sequences per step cannot be made of 3 processes with 2 each"):
        record.set_accumulation(SimpleNamespace(per_device_train_batch_size=2, world_size=3), 8, "pretrain")


def test_a_run_goes_on_and_ends_and_is_not_mixed_with_another(tokenizer, tmp_path, capsys):
    """One more step than planned, or the weights of another arm, would show in no loss."""
    text = " ".join(f"word{n % 97} word{n % 89}" for n in range(4000))
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": text}) + "\n")
    packed(tmp_path, tmp_path / "texts.jsonl", "--length", "16", "--validation", "2")
    out = tmp_path / "run"
    command = ["--preset", "toy", "--data", str(tmp_path / "out"), "--out", str(out), "--sequences", "2"]
    command += ["--per_device_train_batch_size", "2", "--save_steps", "1", "--report_to", "none", "--use_cpu", "true"]

    def trained(*options: str) -> tuple[dict, dict]:
        pretrain.main([*command, *options])
        return json.loads((out / "run.json").read_text()), load_file(out / "model.safetensors")

    run, weights = trained("--max_steps", "3")
    assert (run["steps"], run["planned_steps"], run["resumed_at_step"]) == (3, 3, 0)
    with pytest.raises(SystemExit) as ended:
        trained("--max_steps", "3")
    assert not ended.value.code and "has taken all of its 3 steps: nothing to do" in capsys.readouterr().out
    (out / "run.json").unlink()  # interrupted before the end
    again, same = trained("--max_steps", "3")
    assert (again["steps"], again["resumed_at_step"]) == (3, 2)
    assert all(torch.equal(weight, weights[name]) for name, weight in same.items())
    with pytest.raises(SystemExit, match=r"checkpoints of another run .*arm 'nexus-qk-shared', now 'standard'"):
        trained("--max_steps", "4", "--arm", "standard")
    longer, _ = trained("--max_steps", "4")
    assert (longer["steps"], longer["resumed_at_step"]) == (4, 3)


def test_bad_input_to_the_training_scripts_ends_in_one_sentence(tokenizer, tmp_path):
    common = ["--preset", "toy", "--out", str(tmp_path / "model")]
    with pytest.raises(SystemExit, match=r"is not a folder that pack\.py made"):
        pretrain.main([*common, "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="is not a Nexus model; make one with `nexus convert`"):
        sft.main([*common, "--model", str(tmp_path)])
    NexusConfig(**pretrain.PRETRAINING["toy"].config("nexus-q") | {"vocab_size": 8}).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="is not of the arm nexus-qk, by its refine_key; convert it with ARM=nexus-qk"):
        sft.main([*common, "--model", str(tmp_path)])
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    with pytest.raises(SystemExit, match='needs a column "messages", or "prompt" and "completion"'):
        sft.conversations(str(tmp_path / "texts.jsonl"), "train")
    with pytest.raises(SystemExit, match=r"missing\.jsonl does not exist"):
        sft.conversations(str(tmp_path / "missing.jsonl"), "train")
    preset = pretrain.PRETRAINING["toy"]
    for arm, order, message in (
        ("nexus-qk-shared", "2,1,1", "give one order per layer"),
        ("nexus-qk-shared", "two", "--order two"),
        ("nexus-qk-shared", "0", "at least 1"),
        ("nexus-qk", "3", "defined up to order 2"),
    ):
        with pytest.raises(SystemExit, match=message):
            pretrain.make_model(preset, arm, order, tokenizer)
    with pytest.raises(SystemExit, match=r"toy: .* exists; delete it"):
        toy.main([str(tmp_path)])
