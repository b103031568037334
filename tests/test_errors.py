"""Errors end in one sentence, and quote the reasons of other libraries in one line."""

import pytest

from nexus_transformers.errors import NexusError, TokenizerError, reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("it is\n  broken. "), "it is broken"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("Class validation failed:\n  ValueError: order=0 is too small.."), "order=0 is too small"),
        (KeyError(), "KeyError"),
        ("last line of a process:", "last line of a process"),
        (ValueError("x" * 400), "x" * 300),
    ],
)
def test_the_reason_of_a_library_stands_inside_a_sentence(error, reason):
    assert reason_of(error) == reason


def test_a_failed_training_of_a_tokenizer_is_a_value_error_and_one_of_ours():
    assert issubclass(TokenizerError, ValueError) and issubclass(TokenizerError, NexusError)
