"""`--config FILE`: a command's options from a file; what the command line says wins.

The file is TOML or JSON with names of options; for a server also the `config.yml` of Dell's chatbot service.
"""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.options import ModelName
from gpt2chat.cli.terminal import reports_errors
from gpt2chat.errors import ConfigError

if TYPE_CHECKING:
    from gpt2chat.server.settings import ServiceFile

GIVEN = (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.DEFAULT_MAP)
SECRET = ("api_key",)  # what no message shows
OWN = ("config", "help", "resume")  # options that only a command line can have
SERVICE = "gpt2chat.service"  # in a context's meta
KINDS: dict[type[Any], tuple[tuple[type, ...], str]] = {
    type(click.INT): ((int,), "a whole number"),
    click.IntRange: ((int,), "a whole number"),
    type(click.FLOAT): ((float, int), "a number"),
    click.FloatRange: ((float, int), "a number"),
    type(click.BOOL): ((bool,), "true or false"),
}


def config_option(function: Any) -> Any:
    """Add --config, which sets the defaults of the command's other options before they are read."""
    words = "TOML or JSON file with these options: epochs = 20; paths are relative to it."
    return _eager(_take, words)(function)


def service_option(function: Any) -> Any:
    """Add --config to a server's command; besides options it takes `config.yml` of Dell's chatbot service."""
    words = "TOML or JSON file with these options, or config.yml of Dell's chatbot service."
    return _eager(_take_service, words)(function)


def _eager(take: Any, words: str) -> Any:
    """Return what adds --config, which is read before all other options."""
    path = click.Path(path_type=Path)
    return click.option("--config", type=path, is_eager=True, expose_value=False, callback=take, help=words)


def service_of(context: click.Context) -> ServiceFile | None:
    """Return the `config.yml` that was given with --config, if it was one: what no option of the command can say."""
    return context.meta.get(SERVICE)


def is_given(context: click.Context, name: str) -> bool:
    """Whether an option was set, on the command line or in the config file."""
    return context.get_parameter_source(name) in GIVEN


@reports_errors
def _take(context: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is not None and not context.resilient_parsing:
        context.default_map = {**(context.default_map or {}), **read_config(path, context)}


@reports_errors
def _take_service(context: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Take options from a file; `service_of` returns the whole of a `config.yml`."""
    from gpt2chat.server.settings import is_service_file, read_service

    if path is None or context.resilient_parsing:
        return
    if is_service_file(path):
        service = context.meta[SERVICE] = read_service(path, os.environ)
        service.use_token(os.environ)
        found = _as_options(service, context.command)
    else:
        found = read_config(path, context)
    context.default_map = {**(context.default_map or {}), **found}


def _as_options(service: ServiceFile, command: click.Command) -> dict[str, Any]:
    """Return what `config.yml` sets, by the names of a command's parameters; the model is its first argument."""
    found: dict[str, Any] = {"max_tokens": service.max_new_tokens, "dtype": service.dtype, "port": service.port}
    found["log_prompts"] = str(service.log)
    if service.api_key:
        found["api_key"] = service.api_key
    argument = next(param.name for param in command.params if isinstance(param, click.Argument))
    return {**found, str(argument): service.model}


def read_config(path: Path, context: click.Context) -> dict[str, Any]:
    """Return the options that a file sets, by the names of the command's parameters.

    Raises ConfigError naming the file, the key, what was expected and what was found.
    """
    params = _options(context.command)
    found: dict[str, Any] = {}
    for key, value in _read(path).items():
        name = key.replace("-", "_")
        param = params.get(name)
        if name in OWN:
            raise ConfigError(f"{path}: {key}: expected on the command line only (--{name}), found in the file")
        if param is None or param.name is None:
            raise ConfigError(f"{path}: {key}: expected an option of {_title(context)}, {_meant(name, params)}")
        if param.name in found:
            raise ConfigError(f"{path}: {key}: expected {param.name} once, found it twice")
        found[param.name] = _value(path, key, value, param, context)
    return found


def _options(command: click.Command) -> dict[str, click.Parameter]:
    """Return a command's options by each of their long names, with underscores, and its arguments by theirs."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    arguments = {str(param.name): param for param in command.params if isinstance(param, click.Argument)}
    return {**arguments, **{n[2:].replace("-", "_"): o for o in options for n in o.opts if n.startswith("--")}}


def _title(context: click.Context) -> str:
    return f"{context.command_path} (see {context.command_path} --help)"


def _meant(name: str, params: dict[str, click.Parameter]) -> str:
    import difflib

    close = difflib.get_close_matches(name, set(params) - set(OWN), n=1)
    return f"found no such option: did you mean {close[0]}?" if close else "found no such option"


def _read(path: Path) -> dict[str, Any]:
    """Return the keys and values of a file; JSON is what ends with .json or begins with a brace."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8, found the byte {error.object[error.start]:#04x}") from error
    except ValueError as error:  # a name that no file can have
        raise ConfigError(f"{str(path)!r}: cannot be read: {error}") from error
    as_json = path.suffix.lower() == ".json" or text.lstrip().startswith("{")
    try:
        data = json.loads(text, object_pairs_hook=_once) if as_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected {'JSON' if as_json else 'TOML'}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected an object of options, found {_short(data)}")
    return data


def _once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} stands there twice")
    return dict(entries)


def _value(path: Path, key: str, value: Any, param: click.Parameter, context: click.Context) -> Any:
    """Return a value as the command line would give it; paths are taken from the folder of the file."""
    if getattr(param, "multiple", False):
        if not isinstance(value, list):
            raise ConfigError(f'{path}: {key}: expected a list such as ["one", "two"], found {_short(value)}')
        return [_single(path, key, entry, param, context) for entry in value]
    return _single(path, key, value, param, context)


def _single(path: Path, key: str, value: Any, param: click.Parameter, context: click.Context) -> Any:
    types, expected = KINDS.get(type(param.type), ((str,), "a text in quotes"))
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        found = "something else" if param.name in SECRET else _short(value)
        raise ConfigError(f"{path}: {key}: expected {expected}, found {found}")
    try:
        param.type.convert(value, param, context)
    except click.BadParameter as error:
        raise ConfigError(f"{path}: {key}: {error.message}") from error
    return _placed(path.parent, value, param.type)


def _placed(folder: Path, value: Any, kind: Any) -> Any:
    """Return a path as seen from the folder of the config file; a model's name stays a name."""
    if isinstance(kind, click.Path) and value != "-":
        placed = os.path.join(folder, os.path.expanduser(value))
        return placed if value.endswith(("/", os.sep)) else str(Path(placed))
    if isinstance(kind, ModelName) and (beside := Path(folder, os.path.expanduser(value))).exists():
        from gpt2chat.pretrained import is_known

        return value if is_known(value) else str(beside)
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
