"""`config.yml` of Dell's chatbot service, and the `.env` beside it: a file in YAML -> what `gpt2chat serve` needs.

    chatbot_args:
      model_path: "training/run1/checkpoint1"   # within TRAINING_DIR, or a model's name
      max_new_tokens: 500
      max_padding_length: 4096
      data_type: "torch.bfloat16"
      port: 7860
    other_args:
      hf_token: ""

All keys may be left out. The file is read from its nodes, not as Python values, so that faults are quoted as they stand
and YAML's other ways to write a number (12:30, 0x1E, 1_000) are not taken for one.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2chat.errors import ConfigError

LARGEST = 64 << 10  # bytes
DEEPEST = 8  # mappings and lists within each other
DTYPES = ("float32", "float16", "bfloat16", "auto")
TAKEN = ("TRAINING_DIR", "GPT2CHAT_API_KEY")  # what a .env can set here
KEYS = {
    "chatbot_args": ("model_path", "max_new_tokens", "max_padding_length", "data_type", "port"),
    "other_args": ("hf_token",),
}
SECRET = "other_args"  # of what stands there, no message shows more than the names of its keys
STRING, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
OPENING = re.compile(rb"""^(?:\xef\xbb\xbf)?(?:\{\s*)?["']?chatbot_args["']?\s*:""", re.M)


@dataclass(frozen=True)
class ServiceFile:
    """What a `config.yml` says. `model` is a name or a path, as `--model` takes; tokens and keys are never shown."""

    path: Path
    model: str = "demo"
    max_new_tokens: int = 500
    max_length: int = 4096  # longest prompt in tokens; the model's context if that is less
    dtype: str = "bfloat16"
    port: int = 7860  # 0 is any that is free
    hf_token: str = field(default="", repr=False)
    api_key: str = field(default="", repr=False)  # of .env

    @property
    def log(self) -> Path:
        """Where questions and answers are kept."""
        return self.path.with_name("app.log")

    def use_token(self, environ: MutableMapping[str, str]) -> None:
        """Let the hub's client, which reads HF_TOKEN, use the token if there is one."""
        if self.hf_token:
            environ["HF_TOKEN"] = self.hf_token


def is_service_file(path: Path) -> bool:
    """Whether a file is a `config.yml` of the service, by its ending or by its first key."""
    if path.suffix.lower() in (".yml", ".yaml"):
        return True
    try:
        with path.open("rb") as file:
            return OPENING.search(file.read(LARGEST)) is not None
    except (OSError, ValueError):  # whoever reads it will say why
        return False


def read_service(path: Path, environ: Mapping[str, str]) -> ServiceFile:
    """Read a `config.yml`; a variable of `environ` wins over the same one in `.env`.

    Raises ConfigError naming file, key, what was expected and what was found.
    """
    values = _Values(path, _document(path))
    files = [path.with_name(".env"), Path(".env")]
    said = {name: place for file in reversed(files) for name, place in _from_env_file(file).items()}
    said |= {name: (environ[name], Path()) for name in TAKEN if environ.get(name)}
    return ServiceFile(
        path,
        _model(values, said.get("TRAINING_DIR")),
        values.whole("chatbot_args", "max_new_tokens", ServiceFile.max_new_tokens, 1),
        values.whole("chatbot_args", "max_padding_length", ServiceFile.max_length, 1),
        values.dtype(),
        values.whole("chatbot_args", "port", ServiceFile.port, 0, 65535),
        values.token(),
        said["GPT2CHAT_API_KEY"][0] if "GPT2CHAT_API_KEY" in said else "",
    )


def _model(values: _Values, training: tuple[str, Path] | None) -> str:
    """Return a path within TRAINING_DIR if there is such a place, else the name as it stands."""
    from gpt2chat.pretrained import is_known
    from gpt2chat.pretrained.hub import is_repository

    name = values.text("chatbot_args", "model_path", ServiceFile.model)
    if training is None and _is_file_name(name) and not Path(name).exists():
        raise values.wrong("chatbot_args", "model_path", "a model's name, or a place in TRAINING_DIR, which is not set")
    if is_known(name) or training is None:
        return name
    folder = Path(training[1], os.path.expanduser(training[0]))
    place = folder / os.path.expanduser(name)
    try:
        if place.exists():
            return str(place)
    except (OSError, ValueError):  # no name of a file
        pass
    if (is_repository(name) and not _is_file_name(name)) or Path(name).exists():
        return name
    raise values.wrong("chatbot_args", "model_path", f"a model's name, or a place in TRAINING_DIR ({folder})")


def _is_file_name(name: str) -> bool:
    """Whether a name can only be that of a file."""
    return name.startswith((".", "/", "~")) or name.endswith((".pt", ".pth", ".bin", ".safetensors"))


class _Values:
    """The scalars of a document, by section and key; whoever asks for one says what it must be."""

    def __init__(self, path: Path, document: Any) -> None:
        self.path = path
        self.nodes: dict[tuple[str, str], Any] = {}
        for section, node in self._entries(document, "", tuple(KEYS)).items():
            if node.tag == NULL:  # all of its lines are comments
                continue
            for key, value in self._entries(node, section, KEYS[section]).items():
                self.nodes[section, key] = value

    def _entries(self, node: Any, section: str, known: tuple[str, ...]) -> dict[str, Any]:
        if not hasattr(node, "value") or not isinstance(node.value, list) or node.id != "mapping":
            raise ConfigError(
                f"{self.path}: {section or 'the file'}: expected keys such as {known[0]}:, "
                f"found {'something else' if section == SECRET else _shown(node)}"
            )
        found: dict[str, Any] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            shown = "a key" if section == SECRET and name not in known else _short(name)
            place = f"{self.path}: line {line}: {f'{section}.' if section else ''}{shown}"
            if key.id != "scalar" or name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
                raise ConfigError(f"{place}: expected a key of the service, found none of that name: {meant}")
            if name in found:
                raise ConfigError(f"{place}: expected it once, found it twice")
            found[name] = value
        return found

    def wrong(self, section: str, key: str, expected: str, secret: bool = False) -> ConfigError:
        """Return the error of a value that is not what was expected."""
        found = "something else" if secret else _shown(self.nodes[section, key])
        return ConfigError(f"{self.path}: {section}.{key}: expected {expected}, found {found}")

    def whole(self, section: str, key: str, default: int, least: int, most: int | None = None) -> int:
        """Return a whole number."""
        node = self.nodes.get((section, key))
        if node is None:
            return default
        plain = node.id == "scalar" and node.style is None and re.fullmatch(r"0|[1-9][0-9]{0,17}", node.value)
        if not plain or not least <= int(node.value) <= (most or int(node.value)):
            bounds = f"from {least} to {most}" if most else f"of {least} or more"
            raise self.wrong(section, key, f"a whole number {bounds}")
        return int(node.value)

    def text(self, section: str, key: str, default: str) -> str:
        """Return a text that is not empty."""
        node = self.nodes.get((section, key))
        if node is None:
            return default
        if node.id != "scalar" or node.tag != STRING or not node.value.strip() or "\0" in node.value:
            raise self.wrong(section, key, "a text in quotes")
        return str(node.value)

    def dtype(self) -> str:
        """Return the type to compute with, without `torch.`."""
        name = self.text("chatbot_args", "data_type", ServiceFile.dtype).removeprefix("torch.")
        if name not in DTYPES:
            names = ", ".join(name if name == "auto" else f"torch.{name}" for name in DTYPES)
            raise self.wrong("chatbot_args", "data_type", f"one of {names}")
        return name

    def token(self) -> str:
        """Return the hub's token, which no message shows; nothing, or two quotes, is none."""
        node = self.nodes.get(("other_args", "hf_token"))
        if node is None or node.tag == NULL:
            return ""
        if node.id != "scalar" or node.tag != STRING or not re.fullmatch(r"[!-~]*", node.value):
            raise self.wrong("other_args", "hf_token", "a token in quotes, of letters without blanks", secret=True)
        return str(node.value)


def _document(path: Path) -> Any:
    """Return the root node of a YAML file without anchors, aliases or a second document."""
    text = _text(path)
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(f"{path}: YAML is read by PyYAML, which is not installed: pip install pyyaml") from error
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if getattr(event, "anchor", None) or depth > DEEPEST:
                found = "an anchor or alias" if depth <= DEEPEST else f"more than {DEEPEST} levels"
                raise ConfigError(f"{path}: line {event.start_mark.line + 1}: expected plain keys, found {found}")
        return yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_damage(error, text)}") from error


def _damage(error: Any, text: str) -> str:
    """Say where YAML ends to be YAML."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:  # of the reader, which counts characters
        position = getattr(error, "position", 0)
        return f"line {text.count(chr(10), 0, position) + 1}: expected YAML, found a character that it does not allow"
    problem = getattr(error, "problem", None) or getattr(error, "context", None) or "a fault"
    return f"line {mark.line + 1}: expected YAML: {problem}"


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > LARGEST:
        raise ConfigError(f"{path}: expected at most {LARGEST >> 10} KiB of settings, found more")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8, found the byte {content[error.start]:#04x}") from error


def _shown(node: Any) -> str:
    """Return what a node says, as an error quotes it."""
    if node is None or node.tag == NULL:
        return "nothing"
    return _short(node.value) if node.id == "scalar" else f"a {'list' if node.id == 'sequence' else node.id}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


def _from_env_file(path: Path) -> dict[str, tuple[str, Path]]:
    """Return what a `.env` sets of `TAKEN`, each with the folder that paths are relative to; {} without the file."""
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        entry = re.match(rf"\s*(?:export\s+)?({'|'.join(TAKEN)})\b\s*(=?)\s*(.*)", line)
        if entry and not entry[2]:
            raise ConfigError(f"{path}: line {number}: expected {entry[1]}=VALUE, found no '='")
        if entry and (value := _unquoted(entry[3], path, number)):
            found[entry[1]] = (value, path.parent)
    return found


def _unquoted(value: str, path: Path, number: int) -> str:
    """Return a value without its quotes or the comment behind it."""
    if value[:1] in ("'", '"'):
        quoted = re.match(r"""(['"])(.*?)\1\s*(?:#.*)?$""", value)
        if quoted is None:
            raise ConfigError(f"{path}: line {number}: expected a closing quote, found none")
        return quoted[2]
    return re.sub(r"(?:^|\s+)#.*", "", value).strip()
