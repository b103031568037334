import itertools
import os
import runpy

import pytest

from nexus_transformers.conversion_scripts import progress
from nexus_transformers.conversion_scripts.progress import alongside
from nexus_transformers.errors import ConversionError


def test_work_alongside_returns_what_it_found_and_reports_its_steps():
    steps = []

    def work(advance):
        advance(3)
        return "hashes"

    with alongside(work, steps.append) as result:
        assert result() == "hashes"
    assert steps == [3]


def test_work_that_fails_alongside_is_heard_of():
    def work(advance):
        raise ConversionError("damaged")

    with pytest.raises(ConversionError, match="damaged"), alongside(work, print) as result:
        result()


@pytest.mark.parametrize("failure", [ConversionError, KeyboardInterrupt])
def test_work_alongside_is_given_up_when_the_body_fails(failure):
    """It would go on for ever."""

    def work(advance):
        for _ in itertools.count():
            advance(1)

    with pytest.raises(failure), alongside(work, lambda amount: None):
        raise failure


@pytest.mark.parametrize("terminal", [False, True])
def test_colour_that_is_asked_for_moves_no_bar_where_nobody_watches(terminal, monkeypatch):
    """Notebooks and CI set FORCE_COLOR, and keep every frame of a bar."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(os, "isatty", lambda descriptor: terminal)
    assert runpy.run_path(progress.__file__)["console"].is_terminal == terminal
