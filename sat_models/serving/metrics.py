"""The server's measurements of itself, in Prometheus' format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_DRAWING_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


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


class DrawingMetrics:
    """An `Observer` of the studio.

    Args:
        registry: of other metrics that stand on the same page.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._waiting = Gauge("zoo_drawings_waiting", "Drawings in the queue", registry=self.registry)
        self._running = Gauge("zoo_drawings_running", "Drawings being made", registry=self.registry)
        self._seconds = Histogram(
            "zoo_drawing_seconds", "From request to end", ["outcome"], buckets=_DRAWING_SECONDS, registry=self.registry
        )
        self._steps = Counter("zoo_drawing_steps", "Steps of samplers; rate() gives steps/s", registry=self.registry)
        self._images = Counter("zoo_drawn_images", "Images that were drawn", registry=self.registry)

    def load(self, waiting: int, running: int) -> None:
        """See `drawings.Observer`."""
        self._waiting.set(waiting)
        self._running.set(running)

    def step(self) -> None:
        """See `drawings.Observer`."""
        self._steps.inc()

    def drawn(self) -> None:
        """See `drawings.Observer`."""
        self._images.inc()

    def over(self, outcome: str, seconds: float) -> None:
        """See `drawings.Observer`."""
        self._seconds.labels(outcome).observe(seconds)

    def page(self) -> bytes:
        """The text of `/metrics`."""
        return generate_latest(self.registry)
