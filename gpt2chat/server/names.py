"""Names: of hosts as HTTP writes them, in a Host header, in an Origin, on the command line; and of responses."""

from __future__ import annotations

import ipaddress
import random
import re

HOST = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]{0,253}))(?::(?P<port>[0-9]{1,5}))?"
)
ORIGIN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,31})://(?P<host>[^/?#@\\]+)")
PORTS = {"http": 80, "https": 443}
_numbers = random.Random()  # not secret, and the system's own source takes a fifth of a millisecond


def fresh(prefix: str) -> str:
    """Return a name that no other response has."""
    return f"{prefix}{_numbers.getrandbits(128):032x}"


def parse_host(text: str) -> tuple[str, int | None] | None:
    """Return (name in lower case, port or None) of `name`, `name:port` or `[address]:port`; None for other text."""
    match = HOST.fullmatch(text)
    if match is None:
        return None
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 1 <= port <= 65535:
        return None
    if match["six"]:
        try:
            return f"[{ipaddress.IPv6Address(match['six']).compressed}]", port
        except ValueError:
            return None
    name = match["name"].lower().removesuffix(".")  # the dot of a complete name
    if not all(0 < len(label) < 64 for label in name.split(".")):
        return None
    return name, port


def parse_origin(text: str) -> tuple[str, str, int | None] | None:
    """Return (scheme, name, port) of `scheme://name[:port]`, with the port that the scheme implies; else None."""
    match = ORIGIN.fullmatch(text)
    host = parse_host(match["host"]) if match else None
    if match is None or host is None:
        return None
    return origin_of(match["scheme"].lower(), host)


def origin_of(scheme: str, host: tuple[str, int | None]) -> tuple[str, str, int | None]:
    """Return the origin of a page that was fetched from `host` by `scheme`."""
    name, port = host
    return scheme, name, PORTS.get(scheme) if port is None else port


def loopback(host: str) -> bool:
    """Tell whether only this machine reaches `host`; names other than localhost are not looked up, so they are not."""
    name = host.lower().removesuffix(".").removeprefix("[").removesuffix("]")
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def is_address(host: str) -> bool:
    """Whether a host is an address and not a name; without the brackets of IPv6 or with them."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
