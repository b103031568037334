"""What runs with little time and memory returns and raises as it would here, and ends where it would not end."""

import os
import signal
import time

import pytest

from nexus_transformers import bounded as module
from nexus_transformers.bounded import Exceeded, bounded, step
from nexus_transformers.errors import TokenizerError


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 1)
    monkeypatch.setattr(module, "MEMORY", 300 << 20)


class Unusual(Exception):
    def __init__(self, one, other):  # pickled, it cannot be made again
        super().__init__(f"{one} and {other}")


def raising(error):
    raise error


def three_steps():
    for number in range(3):
        step(f"step {number}")
        time.sleep(0.6)
    return "done"


def for_ever():
    step("chat_template.jinja: rendering a chat with it")
    while True:
        pass


def filling_the_memory():
    step("tokenizer.json: loading this tokenizer")
    return len(b"a" * int("9" * 10))


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def returning_too_much():
    step("it")
    return bytes(module.ANSWER)


def test_it_returns_and_raises_what_the_function_does():
    before = dict(os.environ)
    assert bounded(max, [1, 3, 2]) == 3
    assert bounded(os.getpid) != os.getpid()
    with pytest.raises(TokenizerError, match=r"^it is broken$"):
        bounded(raising, TokenizerError("it is broken"))
    with pytest.raises(RuntimeError, match="Unusual: one and other"):
        bounded(raising, Unusual("one", "other"))
    with pytest.raises(EOFError, match="of the function"):
        bounded(raising, EOFError("of the function"))
    assert dict(os.environ) == before


def test_time_is_limited_for_each_step():
    assert bounded(three_steps) == "done"
    with pytest.raises(Exceeded) as raised:
        bounded(for_ever)
    assert str(raised.value) == (
        "chat_template.jinja: rendering a chat with it takes more than 1 seconds; correct that file, or remove it."
    )


@pytest.mark.parametrize("function", [filling_the_memory, returning_too_much, killed])
def test_memory_is_limited(function):
    with pytest.raises(TokenizerError, match=r"takes more than 0\.29 GB of memory"):
        bounded(function, raises=TokenizerError)
