"""`sdpn identify`: who of a gallery's speakers is it?"""

import json as json_format
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
from sdpn_jax.errors import OK, VERDICT, UserError, one_line, returns_exit_code


@returns_exit_code
def identify(
    recordings: Annotated[list[str], Argument(help="Recordings, one speaker in each.")],
    gallery: Annotated[str, Option(help="The gallery that `sdpn enrol` or `sdpn serve` made.")],
    model: Model = PRETRAINED,
    threshold: Annotated[
        float | None,
        Option(help="The cosine from which it is the speaker; default: the model's.", min=-10, max=10),
    ] = None,
    show: Annotated[int, Option(help="How many of the most alike speakers are shown.", min=1)] = 3,
    channel: Channel = "mean",
    max_seconds: MaxSeconds = MAX_SECONDS,
    json: Json = False,
) -> int:
    """Say which of a gallery's speakers each recording sounds like, or that it is nobody enrolled.

    Exit code 0: all recordings are somebody's, 1: some are nobody's, 2: something was wrong with the input,
    3: a fault of ours.
    """
    keep_compiled_programs()
    from sdpn_jax import SpeakerEncoder
    from sdpn_jax.speaker import gallery as galleries
    from sdpn_jax.speaker import voices

    encoder = SpeakerEncoder.load(model, reading_of(channel, max_seconds))
    speakers = voices.gallery_in(gallery, encoder.fingerprint())
    threshold = encoder.threshold if threshold is None else threshold
    if threshold is None:
        raise UserError("this model brings no threshold: give --threshold, or find one by `sdpn calibrate`")
    results = galleries.identify(speakers, recordings, encoder.embed(recordings), threshold, show)
    if json:
        print(json_format.dumps(results))
    for result in results if not json else ():
        near = ", ".join(f"{row['name']} {row['score']:.4f}" for row in result["ranking"])
        who = result["speaker"] or "nobody enrolled"
        print(one_line(f"{result['recording']}: {who} ({near}; threshold {threshold:.4f})"))
    return OK if all(result["speaker"] for result in results) else VERDICT
