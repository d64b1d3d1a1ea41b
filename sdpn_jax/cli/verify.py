"""`sdpn verify`: are two recordings of one speaker?"""

import dataclasses
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
from sdpn_jax.errors import OK, VERDICT, returns_exit_code


@returns_exit_code
def verify(
    a: Annotated[str, Argument(help="A recording.", metavar="A.wav")],
    b: Annotated[str, Argument(help="Another one.", metavar="B.wav")],
    model: Model = PRETRAINED,
    threshold: Annotated[
        float | None,
        Option(help="The cosine from which speakers count as the same; default: the model's.", min=-10, max=10),
    ] = None,
    channel: Channel = "mean",
    max_seconds: MaxSeconds = MAX_SECONDS,
    json: Json = False,
) -> int:
    """Say whether two recordings are of one speaker: score, threshold and verdict.

    Exit code 0: same speaker, 1: different speakers, 2: something was wrong with the input, 3: a fault of ours.
    """
    keep_compiled_programs()
    from sdpn_jax import SpeakerEncoder

    verdict = SpeakerEncoder.load(model, reading_of(channel, max_seconds)).verify(a, b, threshold=threshold)
    if json:
        print(json_format.dumps({"recordings": [a, b], **dataclasses.asdict(verdict)}))
    else:
        said = "same speaker" if verdict.same_speaker else "different speakers"
        if verdict.probability is not None:
            said += f" (probability of the same one {100 * verdict.probability:.1f} %)"
        digits = 4 if f"{verdict.score:.4f}" != f"{verdict.threshold:.4f}" else 9  # a near miss must not look like none
        print(f"score {verdict.score:.{digits}f}, threshold {verdict.threshold:.{digits}f}: {said}")
    return OK if verdict.same_speaker else VERDICT
