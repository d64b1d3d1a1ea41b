"""`sdpn diarize`: who spoke when in a recording?"""

import json as json_format
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import PurePath
from typing import Annotated, Any

from typer import Argument, Option

from sdpn_jax.cli.options import (
    PRETRAINED,
    Channel,
    Json,
    MaxSeconds,
    Model,
    keep_compiled_programs,
    reading_of,
)
from sdpn_jax.errors import UserError, one_line, returns_exit_code

LONGEST = 24 * 3600.0


@returns_exit_code
def diarize(
    recording: Annotated[str, Argument(help="A recording of several speakers.")],
    output: Annotated[str, Option("--output", "-o", help="RTTM file; JSON and a picture come to lie beside it.")],
    model: Model = PRETRAINED,
    speakers: Annotated[
        int | None, Option(help="How many there are.", min=1, max=100, show_default="estimated, 8 at most")
    ] = None,
    method: Annotated[str, Option(help="How windows are clustered: spectral or agglomerative.")] = "spectral",
    gallery: Annotated[str | None, Option(help="Speakers in it are called by their names.")] = None,
    threshold: Annotated[
        float | None,
        Option(help="The cosine from which a speaker is one of the gallery; default: the model's.", min=-10, max=10),
    ] = None,
    reference: Annotated[str | None, Option(help="RTTM of who really spoke when, to measure the error rates.")] = None,
    collar: Annotated[
        float, Option(help="Seconds on both sides of the reference's boundaries that do not count.", min=0)
    ] = 0.0,
    channel: Channel = "mean",
    max_seconds: MaxSeconds = LONGEST,
    json: Json = False,
) -> int:
    """Say who spoke when: turns of each speaker as RTTM, JSON and a picture."""
    keep_compiled_programs()
    from tqdm import tqdm

    from sdpn_jax import storage
    from sdpn_jax.data import audio
    from sdpn_jax.data.front_ends import FRONT_ENDS
    from sdpn_jax.diarization import clusters, picture, rates, rttm
    from sdpn_jax.diarization.diarize import diarize, named, seconds_of
    from sdpn_jax.speaker import corpus, voices

    if method not in clusters.METHODS:
        raise UserError(f"--method={method}: give {' or '.join(clusters.METHODS)}")
    name, rttm_path = PurePath(recording).stem, storage.place(output)
    if rttm_path.suffix in (".json", ".png"):
        raise UserError(f"--output={output}: give the RTTM file, beside which JSON and a picture will lie")
    others = tuple(rttm_path.with_name(rttm_path.name.removesuffix(".rttm") + end) for end in (".json", ".png"))
    outputs = {os.path.realpath(path) for path in (rttm_path, *others)}
    for read in filter(None, (recording, reference, gallery)):
        if os.path.realpath(read) in outputs:
            raise UserError(f"--output={output}: it would be written over {read}: give another name")
    truth = rttm.turns_of(rttm.read_rttm(reference), name, reference) if reference else None
    if truth:
        rates.check_library()
    reading = reading_of(channel, max_seconds)
    loaded = corpus.load_model(model)
    known = voices.gallery_in(gallery, loaded.digest) if gallery else None
    threshold = loaded.threshold if threshold is None else threshold
    if known and threshold is None:
        raise UserError("this model brings no threshold: give --threshold, or find one by `sdpn calibrate`")
    with tqdm(total=100, unit="%", desc="diarizing", mininterval=1, leave=False) as bar:
        try:
            found = diarize(
                lambda: _counted(audio.blocks_at_16_khz(recording, reading), bar),
                loaded.embed,
                FRONT_ENDS[loaded.front_end],
                speakers,
                method,
                partial(_show, bar),
            )
        except audio.AudioError as error:
            raise UserError(f"{recording}: {error}") from None
    if known and threshold is not None:
        found = named(found, known, threshold)

    errors = rates.error_rates(truth, found.turns, found.seconds, collar) if truth else None
    spoken = seconds_of(found.turns)
    storage.make_folder(rttm_path.parent)
    rttm.write_rttm(rttm_path, name, found.turns)
    rttm.write_json(others[0], name, found.seconds, found.turns, spoken)
    picture.plot_turns(found.turns, found.seconds, others[1])
    if json:
        print(json_format.dumps({"recording": recording, "seconds": found.seconds, "speakers": spoken,
                                 "errors": errors, "output": str(rttm_path)}))  # fmt: skip
        return 0
    for speaker, seconds in spoken.items():
        print(one_line(f"{speaker}: {seconds:.1f} s"))
    if errors:
        told = (
            "diarization error rate {der_percent:.1f} % (missed {miss_percent:.1f}, false alarm "
            "{false_alarm_percent:.1f}, confused {confusion_percent:.1f}), Jaccard error rate {jer_percent:.1f} %"
        )
        print(told.format(**errors))
    for path in (rttm_path, *others):
        print(f"wrote {path}")
    return 0


def _counted(blocks: Iterable, bar: Any) -> Iterator:
    """The blocks; the bar says how much of the recording has been read, for speech is found before it is embedded."""
    from sdpn_jax.data.audio import SAMPLE_RATE

    seconds = 0.0
    for block in blocks:
        seconds += len(block) / SAMPLE_RATE
        bar.set_postfix_str(f"{seconds / 60:,.0f} minutes read", refresh=False)
        bar.update(0)
        yield block


def _show(bar: Any, share: float) -> None:
    bar.update(int(100 * share) - bar.n)
