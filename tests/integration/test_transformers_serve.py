"""`transformers serve`: refused for code that is not part of Transformers, and the way that docs/serve.md shows."""

import socket
import time

import pytest
from transformers import AutoTokenizer

from doc_pages import ROOT, blocks
from nexus_transformers import NexusForCausalLM
from nexus_transformers.conversion_scripts.convert import convert

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
model_manager = pytest.importorskip("transformers.cli.serving.model_manager")

CHAT = [{"role": "user", "content": "What is a class?"}]


@pytest.fixture(scope="module")
def folder(llama_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    convert(llama_folder, folder / "smollm2-nexus", gate_init=0.4, verify=False)
    return folder


def test_the_command_loads_only_classes_that_are_part_of_transformers(folder):
    """Where this fails, Transformers has mended it: then docs/serve.md needs no script."""
    with pytest.raises(AttributeError, match="transformers has no attribute NexusForCausalLM"):
        model_manager.ModelManager("cpu", trust_remote_code=True, force_model=str(folder / "smollm2-nexus"))


@pytest.fixture
def client(folder, monkeypatch):
    """A client of the server that the block of the page starts, here on a free port and in a thread."""
    (block,) = (block for block in blocks(ROOT / "docs" / "serve.md") if "transformers.cli.serve" in block.text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = block.text.replace("port=8000", f"port={port}, host='127.0.0.1', device='cpu', non_blocking=True")
    monkeypatch.setattr(model_manager.transformers, "NexusForCausalLM", None, raising=False)  # gone after the test
    monkeypatch.chdir(folder)
    names = {}
    exec(code.replace("Serve(", "server = Serve("), names)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    for _ in range(100):
        try:
            client.models.list()
            break
        except openai.APIConnectionError:
            time.sleep(0.1)
    yield client
    names["server"].kill_server()


def test_the_script_of_the_page_serves_what_generate_writes(client, folder):
    model = NexusForCausalLM.from_pretrained(folder / "smollm2-nexus").eval()
    standard = NexusForCausalLM.from_pretrained(folder / "smollm2-nexus", attention_order=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "smollm2-nexus")
    inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    def written(model) -> str:
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        return tokenizer.decode(tokens, skip_special_tokens=True)

    settings = {"model": "./smollm2-nexus", "messages": CHAT, "max_tokens": 12, "temperature": 0}
    answer = client.chat.completions.create(**settings).choices[0].message.content
    assert answer == written(model) != written(standard)
    parts = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**settings, stream=True)]
    assert "".join(parts) == answer and len(parts) > 3
