"""The application: paths, the page, and errors as clients expect them."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from importlib import resources

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gpt2chat.server import endpoints
from gpt2chat.server.faults import ApiError, own_fault
from gpt2chat.server.replies import ClientLeft
from gpt2chat.server.service import Service

log = logging.getLogger("gpt2chat.server")
NANOCHAT_PATHS = ("/chat/completions", "/health", "/stats")
LEFT = 499  # nobody reads it: the client has closed the connection

Handler = Callable[[Request], Awaitable[Response]]
Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def application(service: Service, lifespan: Lifespan | None = None) -> Starlette:
    """Return the application that answers with a service; who may come in is the guard's business."""
    posts: dict[str, Handler] = {
        "/chat/completions": endpoints.nanochat,
        "/v1/chat/completions": endpoints.chat,
        "/v1/completions": endpoints.completion,
        "/explain": endpoints.explain,
        "/feedback": endpoints.feedback,
    }
    gets: dict[str, Handler] = {
        "/": _page(),
        "/health": endpoints.health,
        "/stats": endpoints.stats,
        "/metrics": endpoints.metrics,
        "/settings": endpoints.settings,
        "/openapi.json": endpoints.description,
        "/v1/models": endpoints.models,
        "/v1/models/{name:path}": endpoints.model,
    }
    every = [(path, handler, "POST") for path, handler in posts.items()]
    every += [(path, handler, "GET") for path, handler in gets.items()]
    routes = [Route(path, _counted(handler, path, service), methods=[method]) for path, handler, method in every]
    handlers = {ApiError: _api_error, HTTPException: _http_error, ClientLeft: _client_left, Exception: _fault}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)  # type: ignore[arg-type]
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def _page() -> Handler:
    """Return what sends the page, with a policy that lets nothing run but what is in it."""
    text = resources.files("gpt2chat").joinpath("server/page.html").read_text("utf-8")
    hashes = {tag: _hashes(text, tag) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"content-security-policy": policy, "x-frame-options": "DENY"}
    body = text.encode("utf-8")

    async def page(request: Request) -> Response:
        return Response(body, media_type="text/html", headers=headers)

    return page


def _hashes(text: str, tag: str) -> str:
    """Return the sources of a content security policy that allow what stands in the tags of a page."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(each.encode("utf-8")).digest()).decode() for each in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"


def _counted(handler: Handler, path: str, service: Service) -> Handler:
    """Return a handler that counts its responses."""
    requests = service.figures.requests

    async def counting(request: Request) -> Response:
        status = 500
        try:
            response = await handler(request)
            status = response.status_code
            return response
        except ApiError as error:
            status = error.status
            raise
        except ClientLeft:
            status = LEFT
            raise
        finally:
            requests.labels(path, str(status)).inc()

    return counting


def _written(request: Request, error: ApiError) -> Response:
    body = error.encoded(detail=request.url.path in NANOCHAT_PATHS)
    return Response(body, error.status, media_type="application/json", headers=error.headers)


async def _api_error(request: Request, error: ApiError) -> Response:
    return _written(request, error)


async def _http_error(request: Request, error: HTTPException) -> Response:
    offered = "/v1/chat/completions, /v1/completions and /v1/models"
    words = {
        404: f"there is no {request.url.path[:60]} here: OpenAI's clients find {offered}",
        405: f"{request.method} is not served here",
    }
    return _written(
        request, ApiError(error.status_code, words.get(error.status_code, error.detail), headers=error.headers)
    )


async def _client_left(request: Request, error: ClientLeft) -> Response:
    return Response(status_code=LEFT)


async def _fault(request: Request, error: Exception) -> Response:
    return _written(request, own_fault())
