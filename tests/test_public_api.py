"""What users import is there, is documented, and costs nothing until it is used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module, resources
from pathlib import Path
from types import ModuleType

import pytest

import gpt2chat

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gpt2chat"


@pytest.mark.parametrize("name", gpt2chat.__all__)
def test_public_names_resolve_to_things_not_modules(name: str) -> None:
    assert not isinstance(getattr(gpt2chat, name), ModuleType)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gpt2chat.nothing


def test_type_checkers_and_users_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {alias.name: node.module for node in block.body for alias in node.names}
    assert declared == {name: f"gpt2chat.{home}" for name, home in gpt2chat._HOME.items()}
    assert set(gpt2chat.__all__) == {*declared, "__version__"}


@pytest.mark.parametrize(
    "code",
    [
        "import gpt2chat",
        "import gpt_generate",
        "import train_chatbot",
        "from gpt2chat.cli import main; main(['--help'], standalone_mode=False)",
        "from gpt2chat.cli import main; main(['train', '--help'], standalone_mode=False)",
        "from gpt2chat.cli import main; main(['chat', '--help'], standalone_mode=False)",
    ],
)
def test_torch_stays_out_until_it_is_needed(code: str) -> None:
    check = f"import sys; {code}; print('torch' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False False"


def test_there_is_one_chatbot_class() -> None:
    assert import_module("gpt_generate").GPT2Chatbot is gpt2chat.GPT2Chatbot


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_functions_and_classes_are_documented(path: Path) -> None:
    name = ".".join(["gpt2chat", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    if name.endswith("__main__"):
        return
    module = import_module(name)
    assert module.__doc__
    for attribute, value in vars(module).items():
        own = getattr(value, "__module__", None) == name and not attribute.startswith("_")
        if own and (inspect.isclass(value) or inspect.isfunction(value)):
            assert value.__doc__, f"{name}.{attribute}"
            for method, function in vars(value).items() if inspect.isclass(value) else ():
                if inspect.isfunction(function) and not method.startswith("_") and method != "forward":
                    assert function.__doc__, f"{name}.{attribute}.{method}"


@pytest.mark.parametrize("name", ["py.typed", "assets/r50k_base.tiktoken", "assets/demo.pt", "assets/MODEL_CARD.md"])
def test_package_data_is_there(name: str) -> None:
    assert resources.files("gpt2chat").joinpath(name).is_file()
