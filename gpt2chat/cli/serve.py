"""`gpt2chat serve`: a checkpoint as a private chat site and an API that OpenAI's clients speak."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.choosing import named, source_options
from gpt2chat.cli.config import service_of, service_option
from gpt2chat.cli.options import (
    ModelName,
    check_doubt,
    device_options,
    doubt_options,
    draft_option,
    quantize_option,
    stacked,
)
from gpt2chat.cli.terminal import SETTINGS, reports_errors, say, tolerate_any_text, visible

if TYPE_CHECKING:
    from gpt2chat.server.guard import Policy
    from gpt2chat.server.running import Workers
    from gpt2chat.server.service import Settings

FILE = click.Path(path_type=Path)
CLIENTS = click.Choice(["python", "curl", "llm", "openwebui", "aichat"])
EXTRA = ("starlette", "uvicorn", "pydantic", "prometheus_client")
KEY = "GPT2CHAT_API_KEY"
SWITCH_S = 0.001  # how long the engine's thread may keep the interpreter from the event loop, and the loop from it


def drawing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add how answers are drawn when a request does not say; names and defaults are those of nanochat's server."""
    return stacked(
        click.option("-t", "--temperature", type=float, default=0.8, help="0 always takes the likeliest token."),
        click.option("-k", "--top_k", type=int, default=50, help="Draw from the k likeliest tokens; 0 is all."),
        click.option("--top_p", type=float, default=1.0, help="Draw from the likeliest tokens that reach p."),
        click.option("-m", "--max_tokens", type=int, default=512, help="Longest answer, in tokens."),
        click.option("--system", help="What the bot is told before a conversation that has no system message."),
        click.option("--chat_template", "--template", "template", help="How turns are written.  [default: as taught]"),
        click.option("--examples", type=FILE, multiple=True, help="Pairs to show the model without training."),
    )(function)


def door_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add where the server listens and whom it lets in."""
    return stacked(
        click.option("-p", "--port", type=click.IntRange(0, 65535), default=8000, help="0 takes any that is free."),
        click.option("--host", default="127.0.0.1", help="Beyond this machine, 0.0.0.0 say, a key is needed."),
        click.option(
            "--api_key", help=f"What clients must send; better in {KEY} or a file, where ps does not show it."
        ),
        click.option("--api_key_file", type=FILE, help="A file with a key per line."),
        click.option("--insecure", is_flag=True, help="Serve beyond this machine without a key."),
        click.option(
            "--allow_host", multiple=True, help="A further name by which browsers reach the server; repeatable."
        ),
        click.option("--cors_origin", multiple=True, help="A site whose pages may ask, https://my.site; repeatable."),
    )(function)


@click.command("serve", context_settings=SETTINGS)
@click.argument("checkpoint", required=False, type=ModelName())
@source_options
@service_option
@click.option("-n", "--num_gpus", type=click.IntRange(1), default=1, help="Workers, one for each GPU.")
@drawing_options
@device_options()
@quantize_option
@draft_option
@door_options
@click.option("--max_concurrent", type=click.IntRange(1), default=32, help="Answers at a time, per worker.")
@click.option("--max_queue", type=click.IntRange(0), default=256, help="Requests that may wait; the next is refused.")
@click.option("--max_wait", type=click.FloatRange(0.1), default=60.0, help="Seconds that a request waits at most.")
@click.option("--feedback", type=FILE, help="Where the page's thumbs keep conversations to train on, .jsonl.")
@doubt_options
@click.option("--title", default="gpt2chat", help="What the page is called.")
@click.option("--suggestion", multiple=True, help="A question on the empty page; repeatable.  [default: taught ones]")
@click.option(
    "--log_prompts", type=FILE, is_flag=False, flag_value="app.log", help="Keep questions and answers in a file."
)
@click.option("--print_client", "client", type=CLIENTS, help="Print how this client talks to the server, and leave.")
@reports_errors
def serve_command(checkpoint: str | None, client: str | None, **options: Any) -> None:
    """Serve CHECKPOINT as a web page and an OpenAI-compatible API.

    Without CHECKPOINT: the newest of your own here and in runs/, else the demo model. Only this machine is let in
    unless --host says otherwise.

    \b
    Examples:
      gpt2chat serve trained_model.pt
      gpt2chat serve demo --port 9000 --feedback feedback.jsonl
      GPT2CHAT_API_KEY=… gpt2chat serve trained_model.pt --host 0.0.0.0 --allow_host chat.my.org
    """
    tolerate_any_text()
    _need_extra()
    policy = _policy(options)
    if client:
        _print_client(client, checkpoint or "gpt2chat", bool(policy.keys), options)
        return
    _log_to_stderr()
    sys.setswitchinterval(SWITCH_S)
    name = named(checkpoint, options["source"], options["model_tag"], options["step"])
    _check_file(name)
    received = _serve(_workers(name, policy, options), _settings(name, options), policy, options)
    say("stopped")
    sys.exit(128 + received if received == signal.SIGINT else 0)


def _check_file(name: str) -> None:
    """Raise CheckpointError for a file that is not there, before the door opens."""
    if Path(name).suffix in (".pt", ".pth") and not Path(name).exists():
        from gpt2chat import checkpoint

        checkpoint.load(name)


def _serve(workers: Workers, settings: Settings, policy: Policy, options: dict[str, Any]) -> int | None:
    """Serve until a signal comes, and return it."""
    from gpt2chat.server.running import Running
    from gpt2chat.server.service import Service
    from gpt2chat.server.sockets import listen

    choices = workers.choices(lambda line: say(f"note: {line}"))
    service = Service(settings, workers.count)
    door = listen(options["host"], options["port"])
    places = f"{len(choices)} GPUs" if choices[0].device.type == "cuda" else f"1 worker on {choices[0].device}"

    def listening(url: str) -> None:
        say(f"{url} is open{', the API at ' + url + '/v1' if url else ''}; Ctrl-C ends it")
        say(f"Initializing worker pool with {places}...")

    if settings.chat_log:
        say(f"questions and answers are kept in {settings.chat_log}")
    if policy.addresses and "*" not in policy.hosts:
        names = ", ".join(options["allow_host"]) or "no name yet: --allow_host gives it one"
        say(f"other machines reach it by its address, or by name ({names})")
    return Running(service, workers, policy, say).serve(door, choices, listening)


def _need_extra() -> None:
    from importlib.util import find_spec

    from gpt2chat.errors import ConfigError

    if missing := [name for name in EXTRA if find_spec(name) is None]:
        raise ConfigError(f"{missing[0]} is not installed: pip install 'gpt2chat[serve]'")


def _policy(options: dict[str, Any]) -> Policy:
    """Return whom the server lets in; raises ConfigError for one that is open to all without being told so."""
    from gpt2chat.errors import ConfigError
    from gpt2chat.server.guard import LOOPBACK, Policy
    from gpt2chat.server.names import loopback

    keys = _keys(options)
    host = options["host"]
    if not loopback(host) and not keys and not options["insecure"]:
        raise ConfigError(
            f"host: expected a key for a server that other machines reach at {host}, found none: "
            f"set {KEY}, pass --api_key_file, or --insecure to let everyone in"
        )
    hosts = {*LOOPBACK, *options["allow_host"]}
    far = not loopback(host)
    if far:  # a key that no page knows makes up for a name that any page may have
        hosts |= {"*"} if keys and not options["allow_host"] else {host}
    return Policy(frozenset(hosts), keys, frozenset(options["cors_origin"]), addresses=far)


def _keys(options: dict[str, Any]) -> tuple[str, ...]:
    from gpt2chat.errors import ConfigError

    path, keys = options["api_key_file"], [options["api_key"], os.environ.get(KEY)]
    if path:
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ConfigError(f"{path}: expected a key per line, found none")
        keys += found
    if options["api_key"] == "":
        raise ConfigError("api_key: expected a key, got an empty one")
    return tuple(dict.fromkeys(key for key in keys if key))


def _workers(name: str, policy: Policy, options: dict[str, Any]) -> Workers:
    from gpt2chat.server.running import Workers

    computing = {key: options[key] for key in ("device", "dtype", "quantize", "draft")}
    numbers = {"streams": options["max_concurrent"], "waiting": options["max_queue"]}
    return Workers(name, options["num_gpus"], shared_key=len(policy.keys) == 1, **computing, **numbers)


def _settings(name: str, options: dict[str, Any]) -> Settings:
    from gpt2chat.cli.chat.teaching import read_pairs
    from gpt2chat.errors import ConfigError
    from gpt2chat.formats.rows import pairs_to_messages
    from gpt2chat.sampling import GenerationConfig
    from gpt2chat.server.limits import Limits
    from gpt2chat.server.service import Settings, served_name
    from gpt2chat.templates import template_named

    if not 0 <= options["temperature"] <= 2:
        raise ConfigError(f"temperature: expected a number from 0 to 2, got {options['temperature']!r}")
    if options["max_tokens"] < 1:
        raise ConfigError(f"max_tokens: expected a whole number, 1 or more, got {options['max_tokens']}")
    check_doubt(options)
    config = service_of(click.get_current_context())
    drawing = {key: options[key] for key in ("temperature", "top_k", "top_p")}
    examples = [message for path in options["examples"] for message in pairs_to_messages(read_pairs(path))]
    return Settings(
        served_name(name),
        GenerationConfig(max_new_tokens=options["max_tokens"], **drawing),
        options["system"],
        template_named(options["template"]) if options["template"] else None,
        examples,
        config.max_length if config else None,
        options["feedback"],
        options["log_prompts"] or (config.log if config else None),
        options["title"],
        options["suggestion"],
        options["fallback"],
        options["confidence"],
        options["grounded"],
        options["match"],
        Limits(queue_s=options["max_wait"]),
    )


def _print_client(client: str, name: str, key: bool, options: dict[str, Any]) -> None:
    from gpt2chat.server.service import served_name
    from gpt2chat.server.snippets import snippet

    host = (*options["allow_host"], options["host"])[0]
    host = host if host not in ("0.0.0.0", "::", "*") else "127.0.0.1"
    url = f"http://{f'[{host}]' if ':' in host else host}:{options['port']}"
    click.echo(snippet(client, url, served_name(name), key))


class _Lines(logging.Handler):
    """Says what the server notes, without anything that would steer a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        say("\n".join(map(visible, text.split("\n"))))


def _log_to_stderr() -> None:
    handler = _Lines()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name, level in (("gpt2chat.server", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
