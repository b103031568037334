"""Who may import whom. Every import of every source file is read; none is executed."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import nexus_transformers

ROOT = Path(nexus_transformers.__file__).parent
PACKAGE = "nexus_transformers"

# Part -> where its files are. The longest path that fits counts.
PARTS = {
    "errors": "errors",
    "bounded": "bounded",
    "interrupt": "interrupt",
    "configuration": "configuration_nexus",
    "inputs": "inputs_nexus",
    "attention": "attention_nexus",
    "modeling": "modeling_nexus",
    "training": "gate_callback",
    "package": "__init__",
    "tokenization": "tokenization",
    "progress": "conversion_scripts/progress",
    "printing": "conversion_scripts/printing",
    "families": "conversion_scripts/families",
    "checkpoint": "conversion_scripts/checkpoint",
    "verification": "conversion_scripts/verification",
    "isolated checks": "conversion_scripts/verification/isolated_check conversion_scripts/verification/pushed_check",
    "hub": "conversion_scripts/hub",
    "convert": "conversion_scripts/convert conversion_scripts/nesting conversion_scripts/to_source",
    "cli": "conversion_scripts/cli conversion_scripts/tokenizer_command conversion_scripts/edge "
    "conversion_scripts/stopping",
    "inspection": "inspection",
    "common": "common",
    "experiments": "experiments",
    "benchmarks": "benchmarks",
    "examples": "examples",
}
_CONVERSION = "errors bounded configuration modeling tokenization progress printing families checkpoint"
# Part -> the other parts that it may import.
MAY_IMPORT = {
    "errors": "",
    "bounded": "",  # isolated checks have a copy of it
    "interrupt": "",
    "configuration": "",
    "inputs": "configuration",
    "attention": "configuration inputs",
    "modeling": "configuration inputs attention",  # these four travel to the Hub
    "training": "",
    "package": "configuration modeling training interrupt",
    "tokenization": "errors bounded",
    "progress": "",
    "printing": "errors",
    "families": "errors configuration",
    "checkpoint": "errors configuration modeling tokenization progress families",
    "verification": _CONVERSION,
    "isolated checks": "",  # they run where the package cannot be imported
    "hub": f"{_CONVERSION} verification",
    "convert": f"{_CONVERSION} inputs verification hub",  # what a serving engine is refused
    "cli": f"interrupt {_CONVERSION} verification hub convert inspection",
    "inspection": "errors bounded configuration attention modeling tokenization progress printing checkpoint",
    "common": "package",
    "experiments": "package common",
    "benchmarks": "package common",
    "examples": "package common",
}
# What is documented for users, who may import no other module of the package. Outsiders see all of it as "package".
PUBLIC = [PACKAGE, f"{PACKAGE}.modeling_nexus", f"{PACKAGE}.attention_nexus", f"{PACKAGE}.tokenization"]
OUTSIDERS = ("common", "experiments", "benchmarks", "examples")


def sources(root: Path) -> list[Path]:
    folders = {part.split("/")[0] for paths in PARTS.values() for part in paths.split()}
    return [*root.glob("*.py"), *(file for folder in folders for file in (root / folder).rglob("*.py"))]


def part_of(module: str) -> str | None:
    """`module` as a path without .py. None for what belongs to no part, such as setup.py."""
    fitting = [
        (len(path), part)
        for part, paths in PARTS.items()
        for path in paths.split()
        if module == path or module.startswith(f"{path}/")
    ]
    return max(fitting)[1] if fitting else None


def imports(root: Path, file: Path) -> list[tuple[int, str]]:
    """(line, module) of every import of a file of this repository, the module as a path below the root."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                folder = file.parents[node.level - 1].relative_to(root)
                base = ".".join([PACKAGE, *folder.parts, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]  # perhaps a module, perhaps a name in one
        else:
            continue
        for name in names:
            path = name.removeprefix(f"{PACKAGE}.").replace(".", "/") if name != PACKAGE else "__init__"
            for candidate in (path, path.rpartition("/")[0] or "__init__"):
                if name.split(".")[0] not in (PACKAGE, *OUTSIDERS):
                    break
                if (module := module_at(root, candidate)) is not None:
                    found.append((node.lineno, module))
                    break
    return found


def module_at(root: Path, path: str) -> str | None:
    if (root / f"{path}.py").is_file():
        return path
    return f"{path}/__init__" if (root / path / "__init__.py").is_file() else None


def violations(root: Path) -> list[str]:
    """One sentence for every forbidden import and for every circle."""
    found, graph = [], {}
    for file in sources(root):
        module = file.relative_to(root).with_suffix("").as_posix()
        part = part_of(module)
        if part is None:
            continue
        graph[module] = set()
        for line, imported in imports(root, file):
            target = part_of(imported)
            graph[module].add(imported)
            where = f"{module}.py:{line} imports {imported}.py"
            if part in OUTSIDERS and target not in OUTSIDERS:
                name = ".".join([PACKAGE, *imported.split("/")]).removesuffix(".__init__")
                if name not in PUBLIC:
                    found.append(f"{where}, but {part} may import only the public names: {', '.join(PUBLIC)}.")
            elif target not in (part, *MAY_IMPORT[part].split()):
                found.append(f"{where}, but {part} may import only: {MAY_IMPORT[part] or 'nothing of ours'}.")
        graph[module].discard(module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"These import each other in a circle: {' -> '.join(reversed(error.args[1]))}.")
    return found


def test_every_import_is_allowed_and_there_is_no_circle():
    assert violations(ROOT) == []


def test_every_source_file_belongs_to_a_part():
    modules = {path.relative_to(ROOT).with_suffix("").as_posix() for path in sources(ROOT)}
    assert {module for module in modules if part_of(module) is None} == {"setup", "conversion_scripts/__init__"}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("conversion_scripts/checkpoint/report.py", "from ..hub.card import x", "checkpoint may import only: errors"),
        ("conversion_scripts/families/llama.py", "from ..checkpoint import files", "families may import only"),
        ("modeling_nexus.py", "def f():\n    from . import errors", "modeling_nexus.py:2 imports errors.py"),
        ("inspection/load.py", "from ..conversion_scripts.hub import card", "inspection may import only"),
        ("examples/chat.py", "from nexus_transformers.conversion_scripts.hub.card import x", "only the public names"),
        ("benchmarks/speed.py", "from experiments.models import x", "benchmarks may import only: package common"),
        ("conversion_scripts/verification/pushed_check.py", "import nexus_transformers", "nothing of ours"),
        ("conversion_scripts/hub/card.py", "from . import push", "in a circle: "),
    ],
)
def test_a_forbidden_import_is_found(file, text, message, tmp_path):
    files = {
        "errors.py": "",
        "__init__.py": "from . import modeling_nexus",
        "modeling_nexus.py": "",
        "conversion_scripts/checkpoint/files.py": "from ...errors import NexusError",
        "conversion_scripts/hub/card.py": "from ..checkpoint.files import x",
        "conversion_scripts/hub/push.py": "from .card import x",
        "experiments/models.py": "from nexus_transformers import x",
    }
    packages = {f"{Path(name).parent.as_posix()}/__init__.py": "" for name in (*files, file) if "/" in name}
    write(tmp_path, packages | files)
    assert violations(tmp_path) == []
    write(tmp_path, {file: text})
    (violation,) = violations(tmp_path)
    assert message in violation


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
