"""`nexus push` and `push_to_hub`: the real client and the real command, against a double of the Hub on loopback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants

import checkpoints
from hub_double import COMMIT, online
from isolated import run_isolated
from nexus_transformers import NexusForCausalLM, NexusForSequenceClassification
from nexus_transformers.conversion_scripts.convert import convert
from nexus_transformers.conversion_scripts.hub.push import changed_since

TOKEN = "hf_dummy_token_that_must_not_show"
REPO = "someone/nexus"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A converted model with two shards; only read."""
    folder = tmp_path_factory.mktemp("push")
    source = checkpoints.llama(folder / "source")
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# A tiny model\n")
    convert(source, folder / "model", verify=False, max_shard_size="200KB")
    return folder / "model"


@pytest.fixture
def model(converted, tmp_path):
    """A copy of it to change."""
    return Path(shutil.copytree(converted, tmp_path / "model"))


@pytest.fixture
def double(monkeypatch, tmp_path):
    with online(monkeypatch, tmp_path / "home", TOKEN) as double:
        yield double


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_push_creates_uploads_once_and_checks_what_comes_back(model, double, nexus, tmp_path):
    meant = contents(model)
    stray = ["model-00007-of-00009.safetensors", "optimizer.pt", "pytorch_model.bin", "training_args.bin", "token"]
    stray += ["checkpoint-3/model.safetensors", "__pycache__/modeling_nexus.pyc", ".cache/huggingface/x.lock", ".env"]
    for name in stray:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(TOKEN)

    command = [Path(sys.executable).with_name("nexus"), "push", "model", REPO, "--private"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert first.stderr == "", "quiet when piped"
    pushed = double.files(REPO)
    assert set(pushed) == set(meant) | {".gitattributes"}
    for name, content in meant.items():
        assert pushed[name] == (content.replace(b"PATH_OR_REPO_ID", REPO.encode()) if name == "README.md" else content)
    assert f'path = "{REPO}"'.encode() in pushed["README.md"]
    assert (model / "README.md").read_bytes() == meant["README.md"]
    assert double.repositories[REPO].private
    commits = list(double.repositories[REPO].commits)
    assert len(commits) == 2, "the one that makes the repository, and ours"
    assert commits[-1] in first.stdout
    for part in ("config and tokenizer equal", "outputs equal at", "pytorch_model.bin", "checkpoint-3/", ".env"):
        assert part in first.stdout

    double.requests.clear()
    status, output, errors = nexus("push", model, REPO, "--json")
    assert status == 0, errors
    result = json.loads(output)
    assert result["unchanged"] and result["commit"] == commits[-1]
    assert result["verification"]["differences"] == [] and result["verification"]["positions"] > 10
    assert result["left_out"] == sorted({name if "/" not in name else name.split("/")[0] + "/" for name in stray})
    assert list(double.repositories[REPO].commits) == commits
    assert not [path for path in double.sent() if path.startswith("lfs/") or "/commit/" in path]
    written = [file for file in tmp_path.rglob("*") if file.is_file() and str(file.relative_to(model)) not in stray]
    assert not [file for file in written if TOKEN.encode() in file.read_bytes()]
    assert TOKEN not in first.stdout + first.stderr + output + errors


def test_dry_run_sends_nothing(model, double, nexus):
    (model / "optimizer.pt").write_bytes(b"state")
    status, output, errors = nexus("push", model, REPO, "--dry-run")
    assert status == 0, errors
    assert double.sent() == []
    for part in ("Nothing was sent", "does not exist", "model-00001-of-00002.safetensors", "Left out: optimizer.pt"):
        assert part in output
    status, output, _ = nexus("push", model, REPO, "--dry-run", "--json")
    result = json.loads(output)
    assert result["files"]["config.json"]["bytes"] == (model / "config.json").stat().st_size
    assert not result["exists"]


def test_only_files_beside_the_model_are_deleted_on_the_hub(model, double, nexus, tmp_path):
    """Those of other models in folders of the repository stay."""
    old = {"config.json": (model / "config.json").read_bytes(), "model.safetensors": b"old"}
    others = {"model-q8/model-00001-of-00002.safetensors": b"8", "model-q8/config.json": b"{}", "LICENSES/x.new": b"x"}
    for name, content in (old | others).items():
        (tmp_path / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "old" / name).write_bytes(content)
    double.add(REPO, tmp_path / "old")
    result = json.loads(nexus("push", model, REPO, "--dry-run", "--json")[1])
    assert result["deleted"] == ["model.safetensors"]


def test_a_shard_with_the_name_of_a_pattern_is_sent(model, double, nexus):
    index = json.loads((model / "model.safetensors.index.json").read_text())
    old = sorted(set(index["weight_map"].values()))[0]
    (model / old).rename(model / "model-a[1].safetensors")
    index["weight_map"] = {
        name: file.replace(old, "model-a[1].safetensors") for name, file in index["weight_map"].items()
    }
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "conversion_report.json").unlink()
    result = json.loads(nexus("push", model, REPO, "--dry-run", "--json")[1])
    assert "model-a[1].safetensors" in result["files"] and result["left_out"] == []


def test_every_licence_file_is_sent_that_a_conversion_carries_over(model, double, nexus):
    sent = ["LICENSE-MODEL", "NOTICE.txt", "USE_POLICY.md"]
    for name in sent:
        (model / name).write_text("terms")
    (model / "LICENSES").mkdir()
    (model / "LICENSES" / "private.txt").write_text("not a licence file of the model")
    result = json.loads(nexus("push", model, REPO, "--dry-run", "--json")[1])
    assert set(sent) <= set(result["files"]) and not any("private" in name for name in result["files"])


def test_too_little_space_to_download_it_again_is_said_before_anything_is_sent(model, double, nexus, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    status, output, errors = nexus("push", model, REPO)
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert "set TMPDIR to a folder on a larger disk" in errors
    assert double.requests == []


@pytest.mark.slow
def test_an_interrupted_push_shows_nothing_and_the_next_one_sends_the_rest_and_deletes_what_is_old(
    converted, double, nexus, tmp_path
):
    """A model.safetensors of an earlier push would win over the new shards."""
    old = {name: b"old" for name in ("model.safetensors", "vocab.json", "LICENSE", "picture.png")}
    old["config.json"] = (converted / "config.json").read_bytes()
    others = {f"model-q8/{name}": b"of another model" for name in ("config.json", "model-00001-of-00002.safetensors")}
    old |= others
    (tmp_path / "old" / "model-q8").mkdir(parents=True)
    for name, content in old.items():
        (tmp_path / "old" / name).write_bytes(content)
    double.add(REPO, tmp_path / "old")
    double.drop = {"PUT": [1], "commit": [1]}  # the client itself tries a PUT again, but not a commit
    status, output, errors = nexus("push", converted, REPO)
    assert (status, output) == (1, "")
    assert errors.startswith(f"error: {REPO}: the connection to the Hub failed") and errors.count("\n") == 1
    assert "Run the same command again" in errors
    assert double.files(REPO) == old
    double.requests.clear()
    status, output, errors = nexus("push", converted, REPO)
    assert status == 0, errors
    assert not [path for path in double.sent() if path.startswith("lfs/")], "the shards had arrived"
    assert len(double.repositories[REPO].commits) == 2
    assert "Deleted there: model.safetensors, vocab.json." in output
    assert set(double.files(REPO)) == set(contents(converted)) | {"LICENSE", "picture.png", *others}
    assert "outputs equal at" in output


def test_a_connection_that_never_holds_is_given_up(converted, double, nexus, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    double.drop = {"PUT": range(1, 100)}
    status, output, errors = nexus("push", converted, REPO)
    assert (status, output) == (1, "")
    assert "the connection to the Hub failed" in errors and errors.count("\n") == 1
    assert double.objects == {}
    assert list(double.files(REPO)) == [".gitattributes"]


@pytest.mark.slow
def test_one_byte_that_comes_back_different_fails_the_push(converted, double, nexus):
    double.corrupt = "model-00002-of-00002.safetensors"
    status, output, errors = nexus("push", converted, REPO)
    assert (status, output) == (1, "")
    commit = list(double.repositories[REPO].commits)[-1]
    assert f"{REPO}: was uploaded as commit {commit}, but what comes back differs" in errors
    assert "model-00002-of-00002.safetensors has another sha256" in errors
    assert "00001" not in errors


@pytest.mark.parametrize(
    ("repo", "token", "parts"),
    [
        (REPO, None, ["Not logged in", "hf auth login"]),
        (REPO, "hf_bad", ["does not accept the token", "hf auth login"]),
        (REPO, "hf_read", ["may not write there", "write permission"]),
        ("google/nexus", TOKEN, ["google/nexus: this token may not write there"]),
        ("someone/gated", TOKEN, ["someone/gated: is gated"]),
        ("nexus", TOKEN, ["nexus: is not the name of a repository", "USER/NAME"]),
        ("someone/a/b", TOKEN, ["is not the name of a repository"]),
        ("someone/na me", TOKEN, ["is not the name of a repository"]),
        ("someone/llama", TOKEN, ["already holds a model of another type (llama)"]),
        ("someone/public --private", TOKEN, ["exists and is public", "Nothing was sent"]),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(repo, token, parts, converted, double, nexus, monkeypatch, tmp_path):
    double.add("someone/public", converted)
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    double.add("someone/llama", tmp_path / "llama")
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    arguments = [repo] if "na me" in repo else repo.split(" ")
    status, output, errors = nexus("push", converted, *arguments)
    assert (status, output) == (1, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert not token or token not in errors
    for part in parts:
        assert part in errors
    assert not [path for path in double.sent() if path.startswith("lfs/") or "/commit/" in path]
    assert REPO not in double.repositories


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_is_one_sentence(offline, converted, double, nexus, monkeypatch):
    if offline:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    status, output, errors = nexus("push", converted, REPO)
    assert (status, output) == (1, "")
    assert ("HF_HUB_OFFLINE is set" if offline else "the connection to the Hub failed") in errors
    assert errors.count("\n") == 1


PAGE = "<html><body>Log in to the network of the library</body></html>"
ODD = {  # which request gets which answer, and what is said
    "a page, not an account": ("whoami", 200, PAGE, ["not what a Hub says", "HF_ENDPOINT"]),
    "half an account": ("whoami", 200, '{"name": "some', ["not what a Hub says", "cut off"]),
    "out of order": ("whoami", 503, "", ["answered 503", "Run the same command again"]),
    "a page, not a repository": (f"api/models/{REPO}", 200, PAGE, ["not what a Hub says"]),
    "no repository": (f"api/models/{REPO}", 200, "{}", ["not of the form", "KeyError: 'id'"]),
    "a list": (f"api/models/{REPO}", 200, "[]", ["not of the form"]),
    "files without names": (f"api/models/{REPO}", 200, '{"id": "x", "siblings": [{}]}', ["not of the form"]),
    "a config of words": (f"api/models/{REPO}", 200, '{"id": "x", "config": "nexus"}', ["not of the form"]),
    "made, but not where": ("repos/create", 200, "{}", ["not of the form", "KeyError: 'url'"]),
    "made by somebody else": ("repos/create", 409, '{"error": "there"}', ["409 (there), as somebody else"]),
    "a card's page": ("validate-yaml", 200, PAGE, ["not what a Hub says"]),
    "no modes": ("/preupload/", 200, "{}", ["not of the form"]),
    "no objects": ("info/lfs", 200, "{}", ["not of the form", "Malformed response"]),
    "objects of a proxy": ("info/lfs", 200, PAGE, ["not what a Hub says"]),
    "no commit": ("/commit/", 200, "{}", ["not of the form", "Run the same command again"]),
    "two at once": ("/commit/", 409, '{"error": "busy"}', ["409 (busy), as somebody else is changing it"]),
    "a forged line": ("/commit/", 400, json.dumps({"error": "no\nerror: \x1b[2J\x9b3m\u202e ok"}), ["\\u202e"]),
}


@pytest.mark.parametrize("answer", ODD)
def test_an_odd_answer_of_the_hub_is_one_sentence(answer, converted, double, nexus, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    path, status, body, parts = ODD[answer]
    double.odd = {path: (status, body)}
    status, output, errors = nexus("push", converted, REPO)
    assert (status, output) == (1, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1 and errors[:-1].isprintable()
    assert "was not foreseen" not in errors
    for part in parts:
        assert part in errors


def test_a_commit_of_somebody_else_is_told(converted, double):
    double.add(REPO, converted)
    assert changed_since(HfApi(), REPO, COMMIT) == []
    theirs = double.repositories[REPO].add_commit({"config.json": b"{}"})
    (note,) = changed_since(HfApi(), REPO, COMMIT)
    assert theirs in note and COMMIT in note and "was not checked" in note


def edit(name, old, new):
    def change(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def flip_a_weight(folder):
    content = (folder / "model-00001-of-00002.safetensors").read_bytes()
    (folder / "model-00001-of-00002.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


FAULTS = {
    "missing folder": (shutil.rmtree, ["no such folder"]),
    "not a Nexus model": (edit("config.json", '"model_type": "nexus"', '"model_type": "llama"'), ["not a Nexus model"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["has no config.json"]),
    "half an auto_map": (edit("config.json", '"AutoModelForCausalLM"', '"AutoModelForNothing"'), ["auto_map"]),
    "no architectures": (edit("config.json", '"architectures"', '"of"'), ["does not name its architectures"]),
    "no code": (lambda folder: (folder / "modeling_nexus.py").unlink(), ["lacks modeling_nexus.py"]),
    "code that needs us": (
        lambda folder: (folder / "modeling_nexus.py").write_text("\nimport nexus_transformers.configuration_nexus\n"),
        ["imports nexus_transformers, which users may not have"],
    ),
    "code that needs more code": (
        edit("modeling_nexus.py", "from .configuration_nexus", "from .other import x\nfrom .configuration_nexus"),
        ["imports .other, which users may not have"],
    ),
    "no shard": (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), ["lacks the shard"]),
    "half a shard": (
        lambda folder: os.truncate(folder / "model-00002-of-00002.safetensors", 5000),
        ["is not a whole safetensors file"],
    ),
    "two sets of weights": (
        lambda folder: shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model.safetensors"),
        ["has both model.safetensors and model.safetensors.index.json"],
    ),
    "another config": (edit("config.json", '"num_layers": 3', '"num_layers": 2'), ["holds tensor", "does not have"]),
    "other weights": (flip_a_weight, ["conversion_report.json: speaks of other weights"]),
    "no card": (lambda folder: (folder / "README.md").unlink(), ["has no model card"]),
    "no metadata": (lambda folder: (folder / "README.md").write_text("# Model\n"), ["metadata are not valid"]),
    "broken metadata": (edit("README.md", "license: apache-2.0", "license: [apache-2.0"), ["metadata are not valid"]),
    "an empty section": (edit("README.md", "## Limits", "[More Information Needed]"), ["was left to be filled in"]),
    "a token": (edit("conversion_report.json", '"source"', f'"{TOKEN}"'), ["holds an access token"]),
    "a link out of it": (lambda folder: (folder / "x").symlink_to(sys.executable), ["symbolic link out of the folder"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_a_complete_model_is_not_sent(fault, model, double, nexus):
    change, parts = FAULTS[fault]
    change(model)
    status, output, errors = nexus("push", model, REPO)
    assert (status, output) == (1, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert TOKEN not in errors
    for part in parts:
        assert part in errors
    assert double.requests == []


def test_a_card_that_the_hub_rejects_is_not_sent(model, double, nexus):
    edit("README.md", "license: apache-2.0", "license: 7")(model)
    status, _, errors = nexus("push", model, REPO)
    assert status == 1
    assert '"license" must be a string' in errors and errors.count("\n") == 1
    assert double.objects == {}


@pytest.mark.parametrize("model_class", [NexusForCausalLM, NexusForSequenceClassification])
def test_a_trained_model_without_a_report_is_sent_and_said_to_have_none(model_class, model, double, nexus, tmp_path):
    trained = model_class.from_pretrained(model)
    torch.nn.init.constant_(next(iter(trained.gates().values())), 0.25)
    trained.save_pretrained(tmp_path / "trained")
    (tmp_path / "trained" / "README.md").write_text("---\nlibrary_name: transformers\n---\n# Trained\n")
    status, output, errors = nexus("push", tmp_path / "trained", REPO, "--dry-run")
    assert status == 0, errors
    assert "Note: the folder has no conversion_report.json" in output
    assert "Note: the folder has no tokenizer" in output
    assert "  modeling_nexus.py\n" in output


def test_what_else_changed_since_the_conversion_is_said(model, double, nexus):
    edit("generation_config.json", "0.7", "0.8")(model)
    status, output, errors = nexus("push", model, REPO, "--dry-run")
    assert status == 0, errors
    assert "Note: changed since the conversion: generation_config.json." in output


HEADS = ["AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForQuestionAnswering"]
ONLINE = "import os; del os.environ['HF_HUB_OFFLINE']\n"  # run_isolated sets it
PUSH_TO_HUB = (
    ONLINE
    + """
import json, torch, transformers
ids = torch.arange(1, 20)[None]
outputs = {}
torch.manual_seed(0)
for head in ["AutoModelForCausalLM", *sys.argv[2:]]:
    model = getattr(transformers, head).from_pretrained("someone/nexus", trust_remote_code=True)
    repo = f"someone/{head}"
    for step in range(2 if "Causal" in head else 1):
        if "Causal" in head:
            model.freeze_all_but_gates()
            model(ids, labels=ids).loss.backward()
            torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
        commit = model.push_to_hub(repo).oid
        outputs[f"{repo}@{commit}"] = model.eval()(ids)[0].detach()
    outputs[f"{repo}@main"] = outputs[f"{repo}@{commit}"]
torch.save(outputs, sys.argv[1])
print(json.dumps([type(model).__module__]))
"""
)
PULL = (
    ONLINE
    + """
import json, torch, transformers
ids = torch.arange(1, 20)[None]
outputs = torch.load(sys.argv[1])
for where, expected in outputs.items():
    repo, revision = where.split("@")
    head = repo.split("/")[1]
    pinned = {"revision": revision, "code_revision": revision}
    model = getattr(transformers, head).from_pretrained(repo, trust_remote_code=True, **pinned).eval()
    assert torch.equal(model(ids)[0], expected), where
    assert type(model).__module__.startswith("transformers_modules.someone"), type(model)
    config = transformers.AutoConfig.from_pretrained(repo, trust_remote_code=True, **pinned)
    assert config.to_dict()["auto_map"].keys() >= set(sys.argv[2:]), config.auto_map
base = transformers.AutoModel.from_pretrained("someone/AutoModelForCausalLM", trust_remote_code=True).eval()
first, second = [value for where, value in outputs.items() if "Causal" in where][:2]
print(json.dumps({"moved": (first - second).abs().max().item(), "hidden": list(base(ids)[0].shape)}))
"""
)


@pytest.mark.slow
def test_push_to_hub_of_a_loaded_and_trained_model_makes_a_complete_repository(converted, double, tmp_path):
    double.add("someone/nexus", converted)
    outputs = tmp_path / "outputs.pt"
    (module,) = run_isolated(PUSH_TO_HUB, tmp_path, outputs, *HEADS)
    assert module.startswith("transformers_modules.someone")
    for head in ("AutoModelForCausalLM", *HEADS):
        files = double.files(f"someone/{head}")
        assert files["modeling_nexus.py"] == (converted / "modeling_nexus.py").read_bytes()
        auto_map = json.loads(files["config.json"])["auto_map"]
        assert auto_map == json.loads((converted / "config.json").read_text())["auto_map"]
    shutil.rmtree(tmp_path / "home")
    shutil.rmtree(tmp_path / "modules")
    result = run_isolated(PULL, tmp_path, outputs, *HEADS)
    assert result["moved"] > 0, "two revisions are two models"
    assert result["hidden"] == [1, 19, 48]
