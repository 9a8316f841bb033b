"""What a text that others will read must not hold: passwords, tokens, the home folder's path, the user's name."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECRETS = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_KEY")  # in names of the environment


def plain_url(url: str) -> str:
    """Return scheme, host and path of an address, without user, password and query."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "(no address)"
    if not parts.scheme or not host:
        return "(no address)"
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"


def hider() -> Callable[[Any], Any]:
    """Return what hides private words in plain data: texts, and dicts and lists of them."""
    secrets = {value for name, value in os.environ.items() if SECRETS.search(name.upper()) and len(value) > 5}
    homes, users = _homes(), _users()

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: hide(entry) for name, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [hide(entry) for entry in value]
        if not isinstance(value, str):
            return value
        for secret in sorted(secrets, key=len, reverse=True):
            value = value.replace(secret, "(hidden)")
        value = re.sub(r"//[^/\s@]+@", "//", value)
        value = re.sub(r"\bhf_\w{6,}", "(hidden)", value)
        for home in sorted(homes, key=len, reverse=True):
            value = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value)
        for user in users:
            value = re.sub(rf"(?<=[/\\]){re.escape(user)}(?![\w.-])", "(user)", value)
        return value

    return hide


def _homes() -> set[str]:
    homes = set()
    with contextlib.suppress(RuntimeError):  # a user without a home
        homes |= {str(Path.home()), os.path.realpath(Path.home())}
    with contextlib.suppress(ImportError, KeyError):
        import pwd

        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    return {home.rstrip("/\\") for home in homes} - {"", "."}


def _users() -> set[str]:
    users = {Path(home).name for home in _homes()}
    with contextlib.suppress(OSError, KeyError, ImportError):  # no name for this number
        users.add(getpass.getuser())
    return {user for user in users if user}
