"""The server's measurements of itself, in Prometheus' format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """An `Observer` of the scheduler. Each has a registry of its own, so that several servers fit into one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._waiting = Gauge("zoo_requests_waiting", "Requests in the queue", registry=self.registry)
        self._running = Gauge("zoo_requests_running", "Requests being answered", registry=self.registry)
        self._first = Histogram(
            "zoo_first_token_seconds", "From request to first token", buckets=_SECONDS, registry=self.registry
        )
        self._seconds = Histogram(
            "zoo_request_seconds", "From request to end", ["outcome"], buckets=_SECONDS, registry=self.registry
        )
        self._tokens = Counter("zoo_generated_tokens", "Tokens; rate() gives tokens/s", registry=self.registry)
        self._prompt = Counter("zoo_prompt_tokens", "Tokens of prompts, images included", registry=self.registry)

    def load(self, waiting: int, running: int) -> None:
        """See `requests.Observer`."""
        self._waiting.set(waiting)
        self._running.set(running)

    def first_token(self, seconds: float) -> None:
        """See `requests.Observer`."""
        self._first.observe(seconds)

    def tokens(self, count: int) -> None:
        """See `requests.Observer`."""
        self._tokens.inc(count)

    def over(self, outcome: str, seconds: float, prompt_tokens: int) -> None:
        """See `requests.Observer`."""
        self._seconds.labels(outcome).observe(seconds)
        self._prompt.inc(prompt_tokens)

    def page(self) -> bytes:
        """The text of `/metrics`."""
        return generate_latest(self.registry)
