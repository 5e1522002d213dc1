"""Modules import each other in one direction: not at their top, nor inside of a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _named(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(node: ast.AST) -> Iterator[str]:
    """Full names of what is imported when the code runs; what type checkers alone see is left out."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        children: list[ast.AST] = list(node.orelse)
    else:
        children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{one.name}" for one in node.names)
    elif isinstance(node, ast.Import):
        yield from (one.name for one in node.names)
    for child in children:
        yield from _imports(child)


def _graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Modules that each one imports, of those in `sources`."""
    graph = {}
    for name, text in sources.items():
        found = {one if one in sources else one.rpartition(".")[0] for one in _imports(ast.parse(text))}
        graph[name] = (found & sources.keys()) - {name}
    return graph


def _circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Sets of modules of which each leads to each."""
    reached = {name: _reached(graph, name) for name in graph}
    groups = {frozenset({name, *(one for one in reached[name] if name in reached[one])}) for name in graph}
    return [set(group) for group in groups if len(group) > 1]


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_no_circles() -> None:
    """But for the screens of the TUI, which lead to each other as a person goes."""
    sources = {_named(path): path.read_text() for path in (ROOT / "lora_lab").rglob("*.py")}
    circles = _circles(_graph(sources))
    assert [sorted(one) for one in circles if not all(name.startswith("lora_lab.tui.") for name in one)] == []


def test_this_test_can_fail() -> None:
    """A circle by way of a function is one; by way of what type checkers alone see it is none."""
    late = {"a": "def f():\n    from b import x\n", "b": "from c import y\n", "c": "import a\n", "d": "import a\n"}
    assert _circles(_graph(late)) == [{"a", "b", "c"}]
    typed = {"a": "if TYPE_CHECKING:\n    import b\n", "b": "import a\n"}
    assert _circles(_graph(typed)) == []
