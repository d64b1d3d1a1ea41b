"""What the service tells Prometheus of itself: numbers alone, no names and no recordings."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Measures:
    """Counts requests by route and status, their seconds, batches, and what is waiting."""

    def __init__(self):
        self._registry = CollectorRegistry()
        names = ("sdpn_requests", "Requests answered."), ("sdpn_request_seconds", "Time to the end of an answer.")
        self._requests = Counter(*names[0], ("route", "status"), registry=self._registry)
        self._seconds = Histogram(*names[1], ("route",), buckets=SECONDS, registry=self._registry)
        self._rows = Histogram("sdpn_batch_recordings", "Embedded at once.", buckets=ROWS, registry=self._registry)
        self._batch_seconds = Counter("sdpn_batch_seconds", "Spent embedding.", registry=self._registry)
        self._speech = Counter("sdpn_recording_seconds", "Of recordings heard.", registry=self._registry)
        self.working = Gauge("sdpn_working", "Requests with a recording at work or waiting.", registry=self._registry)

    def batch(self, rows: int, seconds: float) -> None:
        """Notes a batch of so many recordings, which took so long."""
        self._rows.observe(rows)
        self._batch_seconds.inc(seconds)

    def heard(self, seconds: float) -> None:
        """Notes a recording of so many seconds."""
        self._speech.inc(seconds)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Notes a request that was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def show(self, _: Request) -> Response:
        """GET /metrics."""
        return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4; charset=utf-8")


class Measured:
    """Tells `Measures` of every request to an application, by the name of its route, never by its path."""

    def __init__(self, app: ASGIApp, measures: Measures):
        self._app, self._measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("endpoint"), "__name__", "none")
            self._measures.request(route, status, time.monotonic() - started)
