"""Who may ask the service, and for how much: hosts, origins, token, size and time of a request, room for work.

Every refusal has the same form: {"error": {"code": ..., "message": ...}}.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/health", "/docs", "/openapi.json")  # and the page: without a token, as they tell nothing of anybody
CODES = {400: "bad_request", 401: "no_token", 403: "forbidden", 404: "not_found", 405: "not_allowed"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; worker-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Refused(Exception):
    """A request that is not answered: HTTP status, a word for programs, a line for people."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None):
        super().__init__(message)
        self.status, self.code, self.retry_after_s = status, code, retry_after_s


def response_of(refused: Refused) -> JSONResponse:
    """Makes the answer of a refusal; the connection ends, as some of the request may not have been read."""
    headers = {"connection": "close"}
    if refused.retry_after_s is not None:
        headers["retry-after"] = str(refused.retry_after_s)
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    content = {"error": {"code": refused.code, "message": str(refused)}}
    return JSONResponse(content, refused.status, headers)


class Room:
    """How much is worked on at the same time; what is beyond it is refused, to be tried again."""

    def __init__(self, most: int, what: str):
        self.used, self._most, self._what = 0, most, what

    def take(self, amount: int = 1) -> None:
        """Takes so much; raises Refused (503) where it is not there."""
        if self.used + amount > self._most:
            raise Refused(503, "busy", f"{self._what}: try again in a moment", retry_after_s=1)
        self.used += amount

    def give(self, amount: int = 1) -> None:
        """Gives back what was taken."""
        self.used -= amount

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Takes one for the block."""
        self.take()
        try:
            yield
        finally:
            self.give()


@dataclass(frozen=True)
class Limits:
    """names: by which the service may be called, beside IP addresses and localhost; token: which has to be shown.

    most_bytes, upload_s: of one request, and in how many seconds it must be here.
    """

    names: frozenset[str]
    token: str | None
    most_bytes: int
    upload_s: float


class Guard:
    """Lets requests through to an application, and what they upload up to the limits."""

    def __init__(self, app: ASGIApp, limits: Limits, uploads: Room, static: frozenset[str]):
        """uploads: bytes of all requests together; static: paths of the page."""
        self._app, self._limits, self._uploads, self._open = app, limits, uploads, static | {*OPEN}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = _Counted(receive, self._limits, self._uploads)
        with_headers = _adding(send, HEADERS)
        try:
            self._check(scope, Headers(scope=scope))
            await self._app(scope, counted.receive, with_headers)
        except Refused as refused:
            await response_of(refused)(scope, receive, with_headers)
        finally:
            counted.forget()

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if not is_own(host, self._limits.names):  # another name may lead here: DNS rebinding
            raise Refused(403, "host", "the service is not called by this name: see --name of sdpn serve")
        if scope["method"] not in ("GET", "HEAD") and not _same_site(headers, host):
            raise Refused(403, "origin", "another site's page may not do this")
        token = self._limits.token
        shown = headers.get("authorization", "").removeprefix("Bearer ")
        if token and scope["path"] not in self._open and not hmac.compare_digest(shown.encode(), token.encode()):
            raise Refused(401, "no_token", "the service's token is needed: Authorization: Bearer TOKEN")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limits.most_bytes:
            raise Refused(413, "too_large", f"more than {self._limits.most_bytes >> 20} MB in one request")


class _Counted:
    """A request's body as it comes in, bounded in size and time."""

    def __init__(self, receive: Receive, limits: Limits, uploads: Room):
        self._receive, self._limits, self._uploads = receive, limits, uploads
        self._bytes, self._until, self._ended = 0, time.monotonic() + limits.upload_s, False

    async def receive(self) -> Message:
        if self._ended:  # what comes now is the client's farewell, for which any time is right
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            raise Refused(408, "too_slow", f"the upload took longer than {self._limits.upload_s:g} s") from None
        size = len(message.get("body", b""))
        if self._bytes + size > self._limits.most_bytes:
            raise Refused(413, "too_large", f"more than {self._limits.most_bytes >> 20} MB in one request")
        self._uploads.take(size)
        self._bytes += size
        self._ended = not message.get("more_body", False)
        return message

    def forget(self) -> None:
        self._uploads.give(self._bytes)


def is_own(host: str, names: frozenset[str]) -> bool:
    """Tells whether a Host header names this service: an IP address, localhost or one of `names`, with any port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return name.rstrip(".") in names | {"localhost"}


def _same_site(headers: Headers, host: str) -> bool:
    """Whether a request that changes something comes from the service's own page, or from no page at all."""
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    try:
        return origin is None or urlsplit(origin).netloc == host
    except ValueError:
        return False


def _adding(send: Send, headers: dict[str, str]) -> Callable:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in headers.items() if name.encode() not in present]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sent
