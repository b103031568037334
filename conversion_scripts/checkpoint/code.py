"""
The code in the folder of a Nexus model: only ours is run, known by its sha256, unless the user allows more. And what a
config may not ask Transformers to read instead of what is checked.
"""

from pathlib import Path
from typing import Any

from ...configuration_nexus import AUTO_MAP
from ...errors import CheckpointError
from ...tokenization.check import remote_code
from .files import CODE_FILES, ROOT, sha256

# The code that released versions put into model folders, sha256 -> version. With every release, add `sha256sum
# *_nexus.py` as they are in its wheel, and never remove one: its models would be refused.
# Nothing was released yet; what is installed here is always known.
RELEASED: dict[str, str] = {}
ALLOW = "read it, and if you trust it, pass --trust-remote-code, which runs all code of this folder with your rights"


# Fields of config.json by which Transformers reads something else than was checked: another config, which may lead to
# code, or other weights.
ELSEWHERE = ("configuration_files", "transformers_weights")
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def check_config(file: Path, config: dict[str, Any]) -> None:
    """Raises `CheckpointError` if `config`, read from `file`, leads to other files, or to a kernel, which is code."""
    for name in ELSEWHERE:
        if config.get(name) is not None:
            raise CheckpointError(
                f"{file}: {name}={config[name]!r} leads Transformers to other files than those that are checked; "
                "remove that field."
            )
    for name in ATTENTION:
        if "/" in str(config.get(name)):
            raise CheckpointError(
                f"{file}: {name}={config[name]!r} names a kernel on the Hub, which is code; remove that field."
            )
    if config.get("quantization_config") is not None:
        method = config["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise CheckpointError(
            f"{file.parent}: is quantized ({method}). Load it with Transformers, call model.dequantize(), save it, and "
            "use that."
        )


def check_code(folder: Path, config: dict[str, Any], trust_remote_code: bool = False, allow: str = ALLOW) -> None:
    """
    Args:
        folder: of a Nexus model. It need not have code: then that of this package is run.
        config: its config.json.
        trust_remote_code: all of its code may be run, except for a tokenizer's: that never is.
        allow: what the user can do instead, for the message.

    Raises:
        `CheckpointError`: it has code that is not ours, or says that code from elsewhere is its own.
    """
    if code := remote_code(folder):
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: its tokenizer needs code of its own ({code}), which is never run; "
            "save it with a class of Transformers."
        )
    if trust_remote_code:
        return
    ours = {sha256(ROOT / name) for name in CODE_FILES} | RELEASED.keys()
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() == ".py" and file.is_file() and sha256(file) not in ours:
            raise CheckpointError(
                f"{file}: is not code of nexus-transformers, of the version installed here or an earlier release, so "
                f"nothing was run; {allow}."
            )
    auto_map = config.get("auto_map") or {}
    references = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    for reference in references:
        if reference not in AUTO_MAP.values():
            raise CheckpointError(
                f"{folder / 'config.json'}: auto_map leads to {reference!r}, which is not code of nexus-transformers, "
                f"so nothing was run; {allow}."
            )
