"""The house holds: imports go down, modules and functions stay small, the library does not talk."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "gpt2chat"
# The same table as in docs/design.md; `cli` is a folder and one floor.
FLOORS = [
    {"errors", "version"},
    {"hardware", "model", "tokenizer"},
    {"conversation", "sampling", "loss"},
    {"data", "generation", "checkpoint"},
    {"training", "evaluation", "pretrained"},
    {"chatbot", "run"},
    {"cli"},
]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}
DOORS = {"__init__", "__main__"}  # the lazy public names and `python -m gpt2chat`
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """Return the module or, inside a folder, the folder."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(source: str) -> Iterator[str]:
    """Yield the rooms of gpt2chat that a source imports, also inside functions and for type checking."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            if module == "gpt2chat":
                yield from (alias.name for alias in node.names if alias.name in FLOOR)
            elif module.startswith("gpt2chat."):
                yield module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("gpt2chat."))


def upward(name: str, source: str) -> list[str]:
    return [other for other in imported_rooms(source) if other != name and FLOOR[other] >= FLOOR[name]]


def test_every_module_has_a_floor() -> None:
    assert {room(path) for path in FILES} - DOORS == set(FLOOR)


@pytest.mark.parametrize("path", [p for p in FILES if room(p) not in DOORS], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    assert upward(room(path), path.read_text("utf-8")) == []


def test_an_upward_import_is_caught() -> None:
    assert upward("sampling", "def f():\n    from gpt2chat.data import pack") == ["data"]
    assert upward("model", "from gpt2chat import tokenizer") == ["tokenizer"]
    assert upward("data", "import gpt2chat.cli.train") == ["cli"]


def test_the_design_document_has_the_same_table() -> None:
    design = (PACKAGE.parent / "docs" / "design.md").read_text("utf-8")
    for number, modules in enumerate(FLOORS):
        row = next(line for line in design.splitlines() if line.startswith(f"| {number} |"))
        for module in modules:
            assert f"`{module}.py`" in row or f"`{module}/`" in row, (number, module)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    source = path.read_text("utf-8")
    assert len(source.splitlines()) < (300 if path.name == "model.py" else 400)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 40, node.name


@pytest.mark.parametrize("path", [p for p in FILES if room(p) not in DOORS | {"cli"}], ids=lambda p: p.name)
def test_the_library_neither_prints_nor_parses_nor_draws(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert "print" not in calls
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imports & {"click", "tqdm", "argparse"}
    top = [ast.unparse(node) for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert not any("environ" in line or "basicConfig" in line for line in top)
