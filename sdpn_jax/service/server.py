"""The service as a process: model, gallery, warm-up, socket, and how it ends."""

import asyncio
import ipaddress
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sdpn_jax.data.front_ends import BINS
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import Network
from sdpn_jax.service.app import Model, Service, Settings, application
from sdpn_jax.service.batches import SHAPES, warm_up
from sdpn_jax.speaker import embedder, voices
from sdpn_jax.weights.load import load_decided

TOKEN, LEAST_TOKEN = "SDPN_JAX_TOKEN", 16  # the variable, and letters
REQUEST_S = 10.0  # in which a request's first lines must be here
MOST_CONNECTIONS = 1000
GRACE_S = 10  # for requests at work when the service is to end


class Patience(H11Protocol):
    """HTTP/1.1 whose clients must say what they want within REQUEST_S; slower ones hold a connection for nothing."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._limit is None:
            self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._limit = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _stop(self) -> None:
        if self._limit:
            self._limit.cancel()
            self._limit = None


def token_for(host: str) -> str | None:
    """Takes the token from the environment. Raises UserError for a short one, and without one where others may ask."""
    token = os.environ.get(TOKEN)
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UserError(f"{TOKEN} is no token: give {LEAST_TOKEN} or more letters and digits")
    if token is None and not is_loopback(host):
        raise UserError(
            f"--host={host} lets other machines ask: set the variable {TOKEN} to a secret of {LEAST_TOKEN} or more "
            "letters, which they must show"
        )
    return token


def is_loopback(host: str) -> bool:
    """Tells whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """Opens the socket, before a model is loaded; raises UserError where that cannot be done."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host={host} --port={port}: {why}; choose another") from None


def load(model: str | os.PathLike) -> tuple[Model, embedder.Embedder]:
    """Loads an encoder for the service, in few shapes. Raises UserError as `load_decided` does."""
    network: Network
    network, variables, decision = load_decided(model)
    made = embedder.Embedder(network, SHAPES)
    digest = embedder.fingerprint(network, variables)
    embed = partial(made, made.put(variables))
    return Model(embed, digest, network.front_end, network.embedding_size, decision), made


def serve(
    model: str | os.PathLike,
    gallery: str | None,
    opened: socket.socket,
    settings: Settings,
    warm_seconds: float,
    certificate: tuple[str, str] | None,
    told: Callable[[str], None],
) -> None:
    """Serves until SIGTERM or Ctrl-C. told: is given what people should know, line by line."""
    loaded, made = load(model)
    kept = voices.opened(Path(gallery), loaded.fingerprint) if gallery else None
    kept = kept or voices.Voices(None, loaded.fingerprint)
    service = Service(loaded, kept, settings)
    warm_up(loaded.embed, made, warm_seconds, BINS, told)
    for name in ("python_multipart", "uvicorn.error"):  # or each bad request would be a line in the log
        logging.getLogger(name).setLevel(logging.ERROR)
    certfile, keyfile = certificate or (None, None)
    config = uvicorn.Config(
        application(service, settings),
        http=Patience,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=round(REQUEST_S),
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=certfile,
        ssl_keyfile=keyfile,
    )
    host, port = opened.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    told(f"listening: http{'s' if certificate else ''}://{name}:{port}, stopped by Ctrl-C")
    try:
        uvicorn.Server(config).run(sockets=[opened])
    finally:
        told(f"stopped; voices are in {kept.path}" if kept.path else "stopped; no voice was kept")
        kept.close()
