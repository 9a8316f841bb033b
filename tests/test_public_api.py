"""The names the package offers: all there, documented, typed, and cheap to import."""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import json
import types
from importlib import resources
from pathlib import Path

import pytest
from helpers_cli import ROOT, spawn

import gpt2chat

PACKAGE = ROOT / "gpt2chat"
MODULES = sorted(PACKAGE.rglob("*.py"))


def type_checking_names() -> dict[str, str]:
    """Name -> module, as the type checker reads the package."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


@pytest.mark.parametrize("name", gpt2chat.__all__)
def test_every_public_name_resolves_to_no_module(name: str) -> None:
    assert not isinstance(getattr(gpt2chat, name), types.ModuleType)
    assert name in dir(gpt2chat)


@pytest.mark.parametrize("name", sorted(gpt2chat._HOME))
def test_every_lazy_name_is_the_one_of_its_module(name: str) -> None:
    module = importlib.import_module(f"gpt2chat.{gpt2chat._HOME[name]}")
    assert getattr(gpt2chat, name) is getattr(module, name)
    assert getattr(getattr(gpt2chat, name), "__module__", module.__name__) in (module.__name__, "builtins")


def test_the_lazy_table_and_what_type_checkers_read_name_the_same() -> None:
    assert type_checking_names() == {name: f"gpt2chat.{module}" for name, module in gpt2chat._HOME.items()}


def test_the_public_names_are_the_lazy_ones_and_the_version() -> None:
    assert sorted(gpt2chat.__all__) == sorted([*gpt2chat._HOME, "__version__"])
    assert len(set(gpt2chat.__all__)) == len(gpt2chat.__all__)


def test_no_public_name_is_shadowed_by_a_module_of_the_package() -> None:
    assert not {path.stem for path in PACKAGE.iterdir()} & set(gpt2chat.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'GPT5'"):
        gpt2chat.GPT5  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import gpt2chat",
        "import gpt_generate",
        "import train_chatbot",
        "import gpt2chat.cli; gpt2chat.cli.main(['--help'], standalone_mode=False)",
        "import gpt2chat.cli; gpt2chat.cli.main(['train', '--help'], standalone_mode=False)",
        "import gpt2chat.cli; gpt2chat.cli.main(['--version'], standalone_mode=False)",
    ],
)
def test_importing_and_asking_for_help_leave_the_heavy_packages_alone(statement: str, tmp_path: Path) -> None:
    heavy = "{'torch', 'numpy', 'tiktoken', 'safetensors', 'huggingface_hub', 'transformers'}"
    report = f"import json, sys; sys.stderr.write(json.dumps(sorted({heavy} & set(sys.modules))))"
    result = spawn(["-c", f"{statement}\n{report}"], tmp_path)
    assert (result.returncode, json.loads(result.stderr)) == (0, [])


def test_the_check_for_heavy_packages_sees_one(tmp_path: Path) -> None:
    result = spawn(["-c", "import sys, gpt2chat; gpt2chat.Tokenizer; print('tiktoken' in sys.modules)"], tmp_path)
    assert result.stdout.strip() == "True"


def test_the_chatbot_of_the_script_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    script = importlib.import_module("gpt_generate")
    assert script.GPT2Chatbot is gpt2chat.GPT2Chatbot
    with pytest.raises(AttributeError, match="no attribute 'GPT2Chatbox'"):
        script.GPT2Chatbox  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    scopes: list[ast.Module | ast.ClassDef] = [tree, *[n for n in tree.body if isinstance(n, ast.ClassDef)]]
    definitions = [n for scope in scopes for n in scope.body if isinstance(n, (ast.ClassDef, ast.FunctionDef))]
    public = [tree, *[node for node in definitions if not node.name.startswith("_")]]
    private = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name.startswith("_")}
    inside_private = {n for c in tree.body if isinstance(c, ast.ClassDef) and c.name in private for n in c.body}
    missing = [n for n in public if n not in inside_private and not ast.get_docstring(n)]
    assert [getattr(node, "name", path.stem) for node in missing] == []


def test_every_public_class_and_function_says_what_it_is_for() -> None:
    for name in gpt2chat.__all__:
        value = getattr(gpt2chat, name)
        if isinstance(value, type) or inspect.isfunction(value):
            assert (inspect.getdoc(value) or "").strip(), name


def test_the_typing_marker_and_the_vocabulary_are_package_data() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = [part.strip() for part in setup["options.package_data"]["gpt2chat"].split(",")]
    shipped = {path.relative_to(PACKAGE).as_posix() for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert {"py.typed", "assets/r50k_base.tiktoken", "assets/demo.pt"} <= shipped
    for name in shipped:
        assert resources.files("gpt2chat").joinpath(name).is_file()


def test_both_scripts_are_installed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    names = {part.strip() for part in setup["options"]["py_modules"].split(",")}
    assert names == {"train_chatbot", "gpt_generate"}
    assert all((ROOT / f"{name}.py").is_file() for name in names)
