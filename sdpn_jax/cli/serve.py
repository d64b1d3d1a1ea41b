"""`sdpn serve`: a service and a page that say who is speaking, on this machine."""

import sys
from typing import Annotated

from typer import Option

from sdpn_jax.cli.options import PRETRAINED, Channel, Model, keep_compiled_programs, reading_of
from sdpn_jax.errors import UserError, returns_exit_code


@returns_exit_code
def serve(
    model: Model = PRETRAINED,
    gallery: Annotated[
        str | None,
        Option(
            help="Where enrolled voices are kept, NAME.db; of NAME.npz, which `sdpn enrol` wrote, the speakers are "
            "taken over into NAME.db once. Default: in memory, until the service ends."
        ),
    ] = None,
    host: Annotated[str, Option(help="Address to listen at; others than this machine's own need SDPN_JAX_TOKEN.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, Option(help="0: a free one.", min=0, max=65535)] = 8000,
    name: Annotated[
        list[str] | None, Option(help="Host name by which it is called, beside localhost and IP addresses.")
    ] = None,
    max_megabytes: Annotated[int, Option("--max_megabytes", help="Of one request.", min=1)] = 128,
    max_seconds: Annotated[float, Option("--max_seconds", help="Of a recording.", min=1.0)] = 60.0,
    max_minutes: Annotated[float, Option("--max_minutes", help="Of a recording to be diarized.", min=0.1)] = 60.0,
    upload_seconds: Annotated[float, Option("--upload_seconds", help="In which a request must be here.", min=1)] = 60.0,
    at_once: Annotated[int, Option("--at_once", help="Recordings embedded in one batch.", min=1)] = 32,
    queue: Annotated[int, Option(help="Requests at work or waiting; more are told to come back (503).", min=1)] = 128,
    decoders: Annotated[int, Option(help="Processes that decode uploads.", min=1)] = 2,
    warm_seconds: Annotated[
        float, Option("--warm_seconds", help="Recordings up to this length are compiled for at the start.", min=0.1)
    ] = 8.0,
    certificate: Annotated[str | None, Option(help="Certificate chain (PEM), for HTTPS.")] = None,
    key: Annotated[str | None, Option(help="Its private key (PEM).")] = None,
    channel: Channel = "mean",
) -> int:
    """Serve a page and an API that compare voices, enrol and recognise them, and tell who spoke when.

    Everything stays on this machine: recordings are embedded and forgotten, of enrolled voices embeddings are kept.
    """  # fmt: skip
    keep_compiled_programs()
    if (certificate is None) != (key is None):
        raise UserError("give --certificate and --key, or neither")
    try:
        from sdpn_jax.service import server
        from sdpn_jax.service.app import Settings
        from sdpn_jax.service.guards import Limits
    except ModuleNotFoundError as error:
        raise UserError(f"the service needs {error.name}: pip install 'sdpn_jax[serve]'") from None

    limits = Limits(frozenset(name or ()), server.token_for(host), max_megabytes << 20, upload_seconds)
    settings = Settings(
        limits,
        max_seconds,
        max_minutes,
        reading_of(channel, max_seconds).channel,
        at_once,
        most_working=queue,
        decoders=decoders,
    )
    opened = server.bound(host, port)
    tls = (certificate, key) if certificate and key else None
    server.serve(model, gallery, opened, settings, warm_seconds, tls, lambda line: print(line, file=sys.stderr))
    return 0
