"""`torch.onnx.export`, run by onnxruntime: one file for every batch size and length, without a cache."""

import pytest
import torch
from arms import ARMS, build

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 64, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, : length // 4] = 0  # left padding
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["shared", "separate QK"])
def test_onnxruntime_computes_the_logits_of_the_model_at_other_lengths_and_batch_sizes(arm, tmp_path):
    """Gates are open. Tolerance 1e-5 at logits of size 4, where there are tokens."""
    model = build(**ARMS[arm], num_layers=1, use_cache=False)
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    program = torch.onnx.export(
        model,
        kwargs=inputs(2, 9),
        dynamo=True,
        dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
        output_names=["logits"],
    )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch, length in ((2, 9), (1, 5), (3, 33)):
        example = inputs(batch, length)
        (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in example.items()})
        tokens = example["attention_mask"].bool()
        with torch.no_grad():
            expected = model(**example).logits[tokens]
        actual = torch.from_numpy(logits)[tokens]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        unmasked = model(example["input_ids"]).logits[tokens]
        assert (unmasked - actual).abs().max() > 0.01, "the mask is an input, not a constant"
    with torch.no_grad():
        for gate in model.gates().values():
            gate.zero_()
        assert (model(**example).logits[tokens] - actual).abs().max() > 0.1, "another model is told apart"
