"""Imports run one way: no circle between files or folders, and none against the order of the house."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "onepeace_lightning"
NAME = "onepeace_lightning"

LEVELS = (
    ("cli",),
    ("integrations",),
    ("tasks",),
    ("inference",),
    ("reports",),
    ("training",),
    ("checkpoints",),
    ("data",),
    ("losses", "metrics"),
    ("modalities",),
    ("models",),
    ("files",),
)
"""From what is used by nobody to what uses nobody; a folder may import from those below it, and from itself."""


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join((NAME, *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == NAME:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else str(node.module))
    return found - {module_of(path)}


GRAPH = {name: imported(path) for name, path in MODULES.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle, empty where there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    for name in sorted(graph):
        if found := visit(name, []):
            return found
    return []


def folder(module: str) -> str:
    """``onepeace_lightning.data.readers.base`` → ``data``; the package's own ``__init__`` is the user's door."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "cli"


def test_a_circle_is_noticed():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_files_do_not_import_each_other_in_circles():
    assert circle(GRAPH) == []


def test_every_folder_has_its_level():
    levelled = {name for level in LEVELS for name in level}
    assert {folder(name) for name in MODULES} <= levelled


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_down(module):
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    own = folder(module)
    against = [other for other in sorted(GRAPH[module]) if folder(other) != own and level[folder(other)] <= level[own]]
    assert not against, f"{module} ({own}) imports {against}"


def test_folders_of_one_level_do_not_import_each_other_in_circles():
    folders: dict[str, set[str]] = {}
    for module, others in GRAPH.items():
        folders.setdefault(folder(module), set()).update(folder(other) for other in others)
    assert circle({name: others - {name} for name, others in folders.items()}) == []
