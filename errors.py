"""The one exception that users are meant to see."""


class ConversionError(Exception):
    """A foreseeable failure. Its message is one clear sentence or two: what is wrong, where, and what to do."""
