"""Speed and memory, always beside a named peer in the same run. Not part of the wheel: run from the repository root."""
