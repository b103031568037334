"""Errors end in one sentence, and quote the reasons of other libraries in one line."""

import pytest

from nexus_transformers.errors import NexusError, TokenizerError, reason_of, shown


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


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("Zażółć 中文 🧠 [red] :smile:", "Zażółć 中文 🧠 [red] :smile:"),
        ("a\nerror: b\r\t\x1b[31m", r"a\nerror: b\r\t\x1b[31m"),
        ("\x9b31m\x7f\u2028\u202e\u2066\ufeff", r"\x9b31m\x7f\u2028\u202e\u2066\ufeff"),
        ("\udcff", r"\udcff"),
        (KeyError("a\nb"), r"'a\nb'"),
    ],
)
def test_what_is_shown_is_one_line_that_does_nothing_to_a_terminal(text, escaped):
    assert shown(text) == escaped
    assert str(NexusError(text)) == escaped


def test_a_message_that_is_too_long_keeps_its_beginning_and_its_end():
    message = str(NexusError(f"config.json: {'x' * 10**6} is unknown. Remove it."))
    assert message.startswith("config.json: xxx") and message.endswith("xxx is unknown. Remove it.")
    assert len(message) < 1100
