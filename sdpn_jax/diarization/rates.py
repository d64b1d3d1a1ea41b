"""How wrong a diarization is: error rates by pyannote.metrics."""

import warnings
from collections.abc import Sequence
from typing import Any

from sdpn_jax.diarization.turns import Turn
from sdpn_jax.errors import UserError


def check_library() -> None:
    """Raises UserError where pyannote.metrics is missing."""
    try:
        import pyannote.metrics  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"error rates need {error.name}: pip install 'sdpn_jax[diarize]'") from None


def error_rates(reference: Sequence[Turn], found: Sequence[Turn], seconds: float, collar: float = 0.0) -> dict:
    """Computes diarization and Jaccard error rates in %, and what the former is made of (Ryant and others, 2019).

    seconds: of the recording, all of which counts; collar: seconds before and as many behind each of the reference's
    boundaries that do not, as md-eval has it. Overlapped speech counts. Raises UserError where the library is missing.
    """
    check_library()
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate

    # The library's collar is the sum of both sides.
    def annotation(turns: Sequence[Turn]) -> Annotation:
        made = Annotation(uri="recording")
        for number, turn in enumerate(turns):
            made[Segment(turn.start, turn.end), number] = turn.speaker
        return made

    whole = Timeline([Segment(0, max([seconds, *(turn.end for turn in (*reference, *found))]))])
    pair = annotation(reference), annotation(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts: Any = DiarizationErrorRate(collar=2 * collar, skip_overlap=False)(*pair, uem=whole, detailed=True)
        jaccard: Any = JaccardErrorRate(collar=2 * collar, skip_overlap=False)(*pair, uem=whole)
    total = float(parts["total"])
    if not total:
        raise UserError("the reference has no speech" + (" outside the collars" if collar else "") + ": no error rates")
    return {
        "der_percent": 100 * float(parts["diarization error rate"]),
        "miss_percent": 100 * float(parts["missed detection"]) / total,
        "false_alarm_percent": 100 * float(parts["false alarm"]) / total,
        "confusion_percent": 100 * float(parts["confusion"]) / total,
        "jer_percent": 100 * float(jaccard),
    }
