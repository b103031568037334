"""The text-generation pipeline on remote code, and `torch.export`, without a cache and with a static one."""

import pytest
import torch
from transformers import GenerationConfig
from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

from isolated import run_isolated
from nexus_transformers import NexusConfig, NexusForCausalLM
from nexus_transformers.conversion_scripts.convert import convert


def build(**changes) -> NexusForCausalLM:
    config = NexusConfig(
        inner_gate=True,
        inner_gate_init=0.3,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
        **{"attention_order": 2, "num_layers": 2} | changes,
    )
    return NexusForCausalLM(config).eval()


def test_the_pipeline_writes_what_generate_writes(llama_folder, tmp_path):
    convert(llama_folder, tmp_path / "model", gate_init=0.3, verify=False)
    script = """
import json, logging
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder = sys.argv[1]
prompts = ["The class of the exception", "Raise"]
chat = [{"role": "user", "content": "What is a class?"}]
options = {"max_new_tokens": 12, "do_sample": False}

complaints = []
class Record(logging.Handler):
    def emit(self, record):
        complaints.append(record.getMessage())
logging.getLogger("transformers").addHandler(Record(logging.WARNING))
pipe = pipeline("text-generation", model=folder, trust_remote_code=True, device="cpu")
single = [pipe(prompt, return_full_text=False, **options)[0]["generated_text"] for prompt in prompts]
batched = [output[0]["generated_text"] for output in pipe(prompts, batch_size=2, return_full_text=False, **options)]
answer = pipe(chat, **options)[0]["generated_text"][-1]["content"]

model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
standard = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attention_order=1)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

def generate(model, inputs):
    tokens = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1]:]
    return tokenizer.decode(tokens, skip_special_tokens=True)

encoded = [tokenizer(prompt, return_tensors="pt") for prompt in prompts]
chat = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(json.dumps({
    "module": type(pipe.model).__module__,
    "complaints": complaints,
    "single": single,
    "batched": batched,
    "generated": [generate(model, inputs) for inputs in encoded],
    "standard": [generate(standard, inputs) for inputs in encoded],
    "answer": answer,
    "generated_answer": generate(model, chat),
}))
"""
    result = run_isolated(script, tmp_path, tmp_path / "model")
    assert result["module"].startswith("transformers_modules.")
    assert not [line for line in result["complaints"] if "not supported" in line], "the table of models lacks ours"
    assert result["single"] == result["batched"] == result["generated"]
    assert all(result["generated"])
    assert result["answer"] == result["generated_answer"] != ""
    assert result["standard"] != result["generated"]


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_order": [3, 1], "sliding_window": 4, "sliding_layers": [0]},
        {"attention_order": 3, "refine_key": False, "num_layers": 1},
        {"attention_order": 2, "inner_attention": "separate", "num_layers": 1},
        {"attention_order": 2, "inner_attention": "self", "num_layers": 1},
        {"attention_order": 2, "inner_window": 4, "num_layers": 1},
    ],
)
def test_an_exported_program_computes_the_model_at_other_lengths_and_batch_sizes(changes, tmp_path):
    model = build(**changes, use_cache=False)

    def inputs(batch, length):
        ids = torch.randint(64, (batch, length))
        mask = torch.ones_like(ids)
        mask[0, :2] = 0  # left padding
        return {"input_ids": ids, "attention_mask": mask}

    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    program = torch.export.export(
        model,
        (),
        inputs(2, 40),
        dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
        strict=False,
    )
    torch.export.save(program, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    for batch, length in ((2, 40), (2, 5), (3, 17)):
        example = inputs(batch, length)
        with torch.no_grad():
            expected = model(**example).logits
            torch.testing.assert_close(exported(**example).logits, expected, atol=1e-6, rtol=0)
            unmasked = exported(**example | {"attention_mask": torch.ones_like(example["input_ids"])}).logits
        assert (unmasked - expected).abs().max() > 0.01, "the mask is an input, not a constant"


@pytest.mark.parametrize("order", [2, 3])
def test_a_program_exported_with_a_static_cache_decodes_token_by_token(order):
    model = build(attention_order=order)
    cache = {"batch_size": 1, "max_cache_len": 16, "device": "cpu"}
    model.generation_config = GenerationConfig(
        use_cache=True, cache_implementation="static", max_length=16, cache_config=cache
    )
    exportable = TorchExportableModuleForDecoderOnlyLM(model, **cache)
    decode = exportable.export(input_ids=torch.tensor([[1]]), cache_position=torch.tensor([0])).module()
    ids = torch.randint(64, (1, 12))
    with torch.no_grad():
        logits = [decode(input_ids=ids[:, [step]], cache_position=torch.tensor([step])) for step in range(12)]
        torch.testing.assert_close(torch.cat(logits, dim=1), model(ids, use_cache=False).logits, atol=2e-5, rtol=0)
