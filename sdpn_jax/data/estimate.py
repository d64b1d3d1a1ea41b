"""What preparing a corpus will take: hours of audio, bytes and time, from a sample, with nothing written."""

import datetime
import time

import joblib
import numpy as np

from sdpn_jax.data import audio, features, prepare
from sdpn_jax.errors import UserError

ESTIMATE_HEADERS = 500  # files whose length an estimate reads
ESTIMATE_SECONDS = 10.0  # that an estimate prepares utterances for


def estimate(utterances: list[audio.Cut], recipe: prepare.Recipe, workers: int = 0) -> str:
    """Estimates hours of audio, bytes and time from a sample of headers and some seconds of preparing, as text."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(utterances))
    seconds = [_seconds_of(utterances[i]) for i in order[:ESTIMATE_HEADERS]]
    readable = [value for value in seconds if value]
    if not readable:
        raise UserError(f"none of {len(seconds)} files looked at can be read, first {utterances[order[0]].path}")
    hours = len(utterances) * sum(readable) / len(seconds) / 3600
    prepare.make_record("", rng.normal(0, 0.1, 10 * audio.SAMPLE_RATE), recipe)  # what is done once only does not count
    started, prepared = time.time(), 0.0
    for i in order:
        try:
            waveform = audio.read_cut(utterances[i], recipe.reading)
        except audio.AudioError:
            continue
        prepare.make_record(utterances[i].id, waveform, recipe)
        prepared += len(waveform) / audio.SAMPLE_RATE
        if time.time() - started > ESTIMATE_SECONDS:
            break
    if not prepared:
        raise UserError(f"none of {len(order)} files can be used, first {utterances[order[0]].path}")
    rate = prepared / (time.time() - started)
    workers = workers or joblib.cpu_count()
    versions = 1 + recipe.augmentations
    gigabytes = hours * 3600 * _bytes_per_second(recipe) / 1e9
    left = datetime.timedelta(seconds=round(hours * 3600 / rate / workers))
    return (
        f"{len(utterances)} files, about {hours:,.1f} hours ({len(seconds)} headers read, "
        f"{len(seconds) - len(readable)} unreadable)\n"
        f"{versions} versions of each (1 clean, {recipe.augmentations} augmented) as {recipe.store}: "
        f"about {gigabytes:,.1f} GB\n"
        f"one core prepares {rate:,.0f} s of audio per second: about {left} with {workers} workers\n"
        "nothing was written"
    )


def _seconds_of(cut: audio.Cut) -> float | None:
    whole = audio.seconds_of(cut.path)
    end = whole if cut.end is None else min(cut.end, whole or 0)
    return end and max(end - cut.start, 0)


def _bytes_per_second(recipe: prepare.Recipe) -> float:
    settings = features.DEFAULT
    if recipe.store == "waveform":
        return settings.sample_rate * 2
    return settings.sample_rate / settings.hop * settings.mel_bins * 2 * (1 + recipe.augmentations)
