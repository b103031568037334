"""
The errors that users are meant to see. Each part of the package raises its own; the `nexus` command prints them. What
stands in them may come from a file or from the network, so they are made safe to print here.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class NexusError(Exception):
    """
    A foreseeable failure. Its message is one or two clear sentences: what is wrong, where, and what to do. It is one
    line that every terminal can print, see `shown`.
    """

    def __init__(self, message: object = ""):
        super().__init__(shown(message))


class CheckpointError(NexusError):
    """A model that cannot be read, from disk or from the Hub, or a folder that cannot be written."""


class ConversionError(NexusError):
    """A model that cannot be converted, or not in the way that was asked for."""


class VerificationError(NexusError):
    """A Nexus model that is not the same function as its source, or cannot be compared with it."""


class TokenizerError(NexusError, ValueError):
    """A tokenizer that cannot be trained, read or used with a model."""


class HubError(NexusError):
    """A model that cannot be pushed: the folder is not complete, the Hub refuses, or what comes back differs."""


class InspectionError(NexusError):
    """A model or a prompt that cannot be inspected."""


def shown(text: object, limit: int = 1000) -> str:
    """
    Any text as one line that does nothing to a terminal: what cannot be printed (line breaks, control and escape
    characters, marks that turn the direction of writing) is escaped as in Python. Of more than `limit` characters the
    middle is left out: a message says at its end what to do.
    """
    escaped = "".join(each if each.isprintable() else repr(each)[1:-1] for each in str(text))
    if len(escaped) <= limit:
        return escaped
    return f"{escaped[: limit * 2 // 3]} [...] {escaped[-limit // 3 :]}"


def reason_of(error: BaseException | str) -> str:
    """
    What another library says, to stand inside a sentence of ours: on one line, at most 300 characters, without the
    names of wrapped exceptions in front and without punctuation at the end.
    """
    text = getattr(error, "strerror", None) or str(error)
    text = " ".join(text.split()).split("Error: ")[-1][:300]
    return text.rstrip(" .:;,!") or type(error).__name__


@contextmanager
def told_as(kind: type[NexusError], sentence: str) -> Iterator[None]:
    """
    Whatever a library raises in here is told as this sentence, in which {reason} stands for what it says, and {kind}
    for the name of the exception. Of a value that nobody expects, of YAML, of a template, which is a program, it raises
    errors of any kind. Ours stay what they are.
    """
    try:
        yield
    except NexusError:
        raise
    except Exception as error:
        named = sentence.replace("{kind}", type(error).__name__)
        raise kind(named.replace("{reason}", reason_of(error))) from error
