"""What a client gets to read when a request cannot be served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# what a status means to clients that look at `type` first
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer with a status of 400 or above, as OpenAI's API words it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.type = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        # clients try 408, 409, 429 and 5xx again by themselves; what will not heal says so
        retry = status in (408, 429, 503)
        self.headers = {"x-should-retry": "true" if retry else "false", **(headers or {})}

    def body(self) -> dict[str, Any]:
        """Return the error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def encoded(self, detail: bool = False) -> bytes:
        """Return the body as JSON; with `detail` also in the form that nanochat's clients read."""
        body = {"detail": self.message, **self.body()} if detail else self.body()
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def own_fault() -> ApiError:
    """Return what a client is told of a bug."""
    return ApiError(500, "the server met a fault of its own")
