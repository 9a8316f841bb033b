"""Figures of a server, for people (`/stats`) and for Prometheus (`/metrics`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gpt2chat.server.answers import Answering

if TYPE_CHECKING:
    from gpt2chat.server.service import Service

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)
# figures of the engine that are shown, and whether they only grow
SHOWN = {
    "running": (False, "Answers that are computed now."),
    "waiting": (False, "Requests that wait for a place."),
    "used_bytes": (False, "Keys and values of running answers, in bytes."),
    "kept_bytes": (False, "Keys and values kept for requests to come, in bytes."),
    "budget_bytes": (False, "The most bytes of keys and values there may be."),
    "finished": (True, "Answers that came to their end."),
    "cancelled": (True, "Answers whose reader left."),
    "refused": (True, "Requests that found the queue full."),
    "failed": (True, "Answers that ended by a fault."),
    "steps": (True, "Passes through the network."),
    "prompt_tokens": (True, "Tokens of prompts."),
    "cached_tokens": (True, "Tokens of prompts that were there from earlier requests."),
    "new_tokens": (True, "Tokens that were drawn."),
    "busy_s": (True, "Seconds that the engine computed."),
}


class Figures:
    """Counts what the server does. Each server has its own registry."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.registry = CollectorRegistry()
        self.registry.register(_EngineFigures(service))  # type: ignore[arg-type]
        made = {"registry": self.registry, "namespace": "gpt2chat"}
        self.requests = Counter("http_requests", "Responses by path and status.", ["path", "status"], **made)  # type: ignore[arg-type]
        self._first = Histogram("first_token_seconds", "From request to first token.", buckets=SECONDS, **made)  # type: ignore[arg-type]
        self._whole = Histogram("answer_seconds", "From request to the end of the answer.", buckets=SECONDS, **made)  # type: ignore[arg-type]
        self._mean_s = 1.0  # of answers, the last ones weighing most

    def note(self, answering: Answering) -> None:
        """Count an answer that has ended."""
        seconds = answering.seconds
        self._whole.observe(seconds)
        if answering.first_s is not None:
            self._first.observe(answering.first_s)
            self._mean_s += 0.1 * (seconds - self._mean_s)

    def refuse(self, status: int) -> None:
        """Count a request that the guard did not let in; its path is its own invention."""
        self.requests.labels("refused", str(status)).inc()

    def wait_s(self) -> int:
        """Return in how many seconds there is likely to be room."""
        engine = self._service.engine
        stats = engine.stats() if engine else None
        ahead = stats.waiting / max(1, stats.running) if stats else 1.0
        return max(1, min(30, round(ahead * self._mean_s)))

    def text(self) -> bytes:
        """Return all figures in the format of Prometheus."""
        return generate_latest(self.registry)

    def stats(self) -> dict[str, Any]:
        """Return nanochat's figures of workers, and those of the engine."""
        engine = self._service.engine
        engines = engine.engines if engine else []
        each = [one.stats() for one in engines]
        free = sum(stats.running < one.streams for one, stats in zip(engines, each, strict=True))
        return {
            "total_workers": self._service.workers,
            "available_workers": free,
            "busy_workers": len(engines) - free,
            "workers": [{"gpu_id": i, "device": str(one.runtime.device)} for i, one in enumerate(engines)],
            "engine": engine.stats().to_dict() if engine else None,
        }


class _EngineFigures:
    """Reads the engine's own figures whenever Prometheus asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        engine = self._service.engine
        values = engine.stats().to_dict() if engine else dict.fromkeys(SHOWN, 0.0)
        for name, (grows, words) in SHOWN.items():
            kind = CounterMetricFamily if grows else GaugeMetricFamily
            metric = kind(f"gpt2chat_engine_{name.replace('busy_s', 'busy_seconds')}", words)
            metric.add_metric([], values[name])
            yield metric
