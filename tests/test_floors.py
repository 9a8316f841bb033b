"""The package is built in floors: imports go down, files stay short, and only the top floor talks to the user."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "gpt2chat"
FLOORS = (
    {"errors", "privacy", "version"},
    {"encoder", "files", "hardware", "machine", "model", "quantize", "tokenizer"},
    {"kernels", "sampling", "loss", "taught", "templates", "weights"},
    {"archive", "conversation", "likelihood"},
    {"likeness", "matching", "records", "runtime"},
    {
        "checkpoint",
        "data",
        "distillation",
        "drafts",
        "formats",
        "mending",
        "paging",
        "shelf",
        "slices",
        "static",
        "told",
    },
    {
        "calibration",
        "chats",
        "checking",
        "generation",
        "packs",
        "pretrained",
        "recall",
        "run_files",
        "slots",
        "small_talk",
    }
    | {"streams", "training"},
    {"decoding", "estimate", "evaluation", "explanation", "reply", "run", "steps", "summary"},
    {"confidence", "engine"},
    {"fleet", "grounding"},
    {"benchmark", "chatbot", "diagnosis", "history", "offline"},
    {"quality", "server"},
    {"cli"},
    {"__main__"},
)
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}
FOLDERS = {"cli", "formats", "kernels", "pretrained", "server"}
FACADE = "__init__"  # names of all floors, loaded on first use: no module below the command line goes through it
SOURCES = sorted(PACKAGE.rglob("*.py"))
LIBRARY = [path for path in SOURCES if "cli" not in path.relative_to(PACKAGE).parts and path.stem != "__main__"]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def unit(path: Path) -> str:
    """The module, or the folder it belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_units(tree: ast.AST, package: str = "gpt2chat") -> Iterator[tuple[int, str]]:
    """Yield (line, module of this package) of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(part for part in (package if node.level else "", node.module) if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == package:
                module = rest.partition(".")[0]
                yield node.lineno, module if module in FLOOR else FACADE


def upward_imports(source: str, importer: str) -> list[str]:
    """Return the imports of `source` that do not go down from `importer`."""
    wrong = []
    for line, target in imported_units(ast.parse(source)):
        inside = target == importer and target in FOLDERS
        if not inside and (target == FACADE or FLOOR[target] >= FLOOR[importer]):
            wrong.append(f"{importer}:{line} imports {target}")
    return wrong


@pytest.mark.parametrize("path", [path for path in SOURCES if unit(path) != FACADE], ids=name_of)
def test_imports_only_go_down(path: Path) -> None:
    assert upward_imports(path.read_text("utf-8"), unit(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "from gpt2chat.training import Step",
        "from gpt2chat import training",
        "from gpt2chat import model, run",
        "import gpt2chat.cli.plan",
        "import gpt2chat.chatbot as bot",
        "from . import training",
        "from .run import Run",
        "from gpt2chat import Checkpoint",
        "import gpt2chat",
        "def late():\n    from gpt2chat.chatbot import GPT2Chatbot",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gpt2chat.cli.train import train_command",
        "from gpt2chat.data import Dataset",
        "from gpt2chat.checkpoint import load",
    ],
)
def test_a_planted_upward_import_is_caught(source: str) -> None:
    assert len(upward_imports(source, "checkpoint")) == 1


def test_downward_imports_and_those_of_others_are_let_through() -> None:
    source = (
        "import torch\nfrom gpt2chat.model import GPT2\nfrom gpt2chat import tokenizer\nfrom .errors import DataError"
    )
    assert upward_imports(source, "checkpoint") == []


def test_every_module_has_a_floor_and_every_floor_its_modules() -> None:
    assert {unit(path) for path in SOURCES} - {FACADE} == set(FLOOR)
    assert sum(map(len, FLOORS)) == len(FLOOR)


def test_the_package_itself_imports_only_its_version_when_it_is_imported() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    at_import = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [target for node in at_import for _, target in imported_units(node)] == ["version"]


# -- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_stay_within_their_line_budget(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) < (300 if path.name == "model.py" else 500)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_are_under_60_lines(path: Path) -> None:
    functions = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.FunctionDef)]
    lengths = {f"{path.name}:{f.lineno} {f.name}": (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    assert {place: length for place, length in lengths.items() if length >= 60} == {}


# -- the library is quiet ------------------------------------------------------------------------------------------


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported: all but the bodies of functions."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from (node for part in [*getattr(child, "decorator_list", []), child.args] for node in ast.walk(part))
        else:
            yield child
            yield from at_import(child)


def dotted(node: ast.AST) -> str:
    """`os.environ` for the expression os.environ; "" for anything but names and attributes."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def noise(source: str) -> list[str]:
    """Return what a library module must not do, where it does."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) in ("print", "input", "breakpoint", "logging.basicConfig"):
            found.append(f"{node.lineno}: {dotted(node.func)}")
        if dotted(node) in ("sys.stdout", "sys.stderr", "sys.stdin", "sys.argv"):
            found.append(f"{getattr(node, 'lineno', 0)}: {dotted(node)}")
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: import {n}" for n in names if n.split(".")[0] in ("click", "tqdm", "argparse")]
    for node in at_import(tree):
        if dotted(node) in ("os.environ", "os.getenv", "environ", "getenv"):
            found.append(f"{getattr(node, 'lineno', 0)}: {dotted(node)} at import")
    return found


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_neither_prints_nor_parses_arguments_nor_reads_the_environment_at_import(path: Path) -> None:
    assert noise(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "def f():\n    print('x')",
        "import click",
        "def f():\n    from tqdm import tqdm",
        "import sys\ndef f():\n    sys.stderr.write('x')",
        "import os\nHOME = os.environ.get('HOME')",
        "import os\nif os.getenv('X'):\n    Y = 1",
        "import os\nclass A:\n    b = os.environ['X']",
        "import os\ndef f(x=os.environ['X']):\n    return x",
    ],
)
def test_planted_noise_is_caught(source: str) -> None:
    assert len(noise(source)) == 1


def test_the_environment_may_be_read_in_a_call() -> None:
    assert noise("import os\ndef f():\n    return os.environ.get('X')") == []
