"""`sdpn enrol`: a named speaker into a gallery."""

import json as json_format
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sdpn_jax.cli.options import (
    MAX_SECONDS,
    PRETRAINED,
    Channel,
    Json,
    MaxSeconds,
    Model,
    keep_compiled_programs,
    reading_of,
)
from sdpn_jax.errors import one_line, returns_exit_code


@returns_exit_code
def enrol(
    recordings: Annotated[list[str], Argument(help="Recordings of the speaker.")],
    name: Annotated[str, Option(help="The speaker.")],
    gallery: Annotated[
        str, Option(help="The gallery, an .npz file, or .db as of `sdpn serve`; made where there is none.")
    ],
    model: Model = PRETRAINED,
    channel: Channel = "mean",
    max_seconds: MaxSeconds = MAX_SECONDS,
    json: Json = False,
) -> int:
    """Enrol a named speaker in a gallery; recordings of a name that is there already are added to it."""
    from sdpn_jax import storage

    keep_compiled_programs()
    from sdpn_jax import SpeakerEncoder
    from sdpn_jax.speaker import gallery as galleries
    from sdpn_jax.speaker import voices

    name = galleries.composed(name)
    encoder, path = SpeakerEncoder.load(model, reading_of(channel, max_seconds)), storage.place(gallery)
    fingerprint = encoder.fingerprint()
    if isinstance(path, Path) and path.suffix == voices.SUFFIX:
        kept = voices.Voices(path, fingerprint)
        kept.enrol(name, encoder.embed(recordings))
        speakers = kept.gallery()
    else:
        speakers = galleries.read(path, fingerprint) if storage.exists(path) else galleries.new(fingerprint)
        speakers.enrol(name, encoder.embed(recordings))
        galleries.write(path, speakers)
    count = int(speakers.counts[speakers.names.index(name)])
    if json:
        print(json_format.dumps({"name": name, "recordings": count, "speakers": speakers.names, "gallery": str(path)}))
    else:
        print(one_line(f"wrote {path}: {len(speakers.names)} speakers in all, {count} recordings of {name}"))
    return 0
