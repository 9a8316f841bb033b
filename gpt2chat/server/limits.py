"""What one client may ask of the server, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds. The defaults suit a small machine in front of people one does not know."""

    body: int = 1 << 20
    header: int = 16 << 10  # request line and all header fields
    header_fields: int = 64
    header_s: float = 10.0  # from the connection, or the end of the request before, to the end of the header
    body_s: float = 30.0
    stall_s: float = 30.0  # for a client that does not read what it is sent
    idle_s: float = 5.0  # between two requests of a connection
    connections: int = 1024
    queue_s: float = 60.0  # until an answer begins, or 503
    answer_s: float = 120.0  # until an answer ends, or it is cut as too long
    grace_s: float = 10.0  # for running answers after SIGTERM
