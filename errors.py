"""The errors that users are meant to see. Each part of the package raises its own; the `nexus` command prints them."""


class NexusError(Exception):
    """A foreseeable failure. Its message is one or two clear sentences: what is wrong, where, and what to do."""


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


def reason_of(error: BaseException | str, limit: int = 300) -> str:
    """
    What another library says, to stand inside a sentence of ours: on one line, at most `limit` characters, without the
    names of wrapped exceptions in front and without punctuation at the end.
    """
    text = getattr(error, "strerror", None) or str(error)
    text = " ".join(text.split()).split("Error: ")[-1][:limit]
    return text.rstrip(" .:;,!") or type(error).__name__
