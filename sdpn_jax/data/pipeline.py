"""Shards -> batches of views with Grain. The batch of step k is a pure function of (seed, k)."""

import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import grain
import joblib
import numpy as np
from absl import flags
from jaxtyping import Float16, Int, Int16

from sdpn_jax.data import augment, features, records
from sdpn_jax.data.shards import Records, Shards
from sdpn_jax.errors import SHARED_MEMORY, UserError

BATCHES_AHEAD = 2  # of each reader process


@dataclass(frozen=True)
class Views:
    """What is cut from an utterance: how many views of how many frames (10 ms), and the masking of the local ones.

    global_augmented: the share of global views that are of augmented versions, as the local ones are. apart: local
    views share as few frames as possible with the first global one, of utterances as long as both none.
    """

    global_count: int = 1
    global_frames: int = 400
    global_augmented: float = 0.0
    local_count: int = 4
    local_frames: int = 200
    mask_probability: float = 0.2
    mask_max_frames: int = 9
    mask_max_bins: int = 5
    mask_value: str = "mean"  # of the band over the view; or "silence": log of zero power, as the released code does
    apart: bool = False


class Places:
    """Draws where the views of one utterance begin, the first global one before the local ones."""

    def __init__(self, num_samples: int, views: Views, rng: np.random.Generator):
        self.num_samples, self.views, self.rng = num_samples, views, rng
        self.taken: tuple[int, int] | None = None  # by the first global view: its first frame, the frame after it

    def of_global(self) -> int | None:
        """Draws the first frame of a global view; None when the utterance is too short and must be padded."""
        frames = self.views.global_frames
        starts = self._starts(frames)
        if not starts:
            return None
        if not self.views.apart or self.taken:
            return self._any_of(starts)
        first = np.arange(len(starts))
        room = np.minimum(np.maximum(first, first[::-1]), self.views.local_frames)  # for a local view beside it
        start = self._any_of(first[room == room.max()])
        self.taken = start, start + frames
        return start

    def of_local(self) -> int | None:
        """Draws the first frame of a local view; None when the utterance is too short and must be padded."""
        frames = self.views.local_frames
        starts = self._starts(frames)
        if not starts:
            return None
        if not self.taken:
            return self._any_of(starts)
        first, (begin, end) = np.arange(len(starts)), self.taken
        shared = np.maximum(np.minimum(first + frames, end) - np.maximum(first, begin), 0)
        return self._any_of(first[shared == shared.min()])

    def _starts(self, frames: int) -> range:
        """The first frames of all stretches of so many frames; none where the utterance is too short."""
        if self.num_samples < frames * features.DEFAULT.hop:
            return range(0)
        return range(1 + self.num_samples // features.DEFAULT.hop - frames + 1)

    def _any_of(self, starts: range | np.ndarray) -> int:
        return int(starts[self.rng.integers(len(starts))])


def crop(
    utterance: records.Utterance, version: int, start: int | None, frames: int
) -> Float16[np.ndarray, "{frames} F"]:
    """Crops `frames` frames from one version of an utterance, float16.

    Without `start` the utterance, shorter than the view, is padded at its end exactly as if silence had followed its
    waveform.
    """
    log_mel = utterance.log_mel[version]
    if start is None:
        return features.pad_with_silence(log_mel, utterance.tail[version], utterance.num_samples, frames)
    return log_mel[start : start + frames]


def mask(log_mel: features.LogMel, views: Views, rng: np.random.Generator) -> features.LogMel:
    """Hides one stretch of frames and one of mel bins, with probability `mask_probability`.

    Both widths are uniform from 0 to their maximum. Hidden values become the mel bin's mean over the view, which the
    instance norm turns into 0, or with "silence" log(floor).
    """
    if rng.random() >= views.mask_probability:
        return log_mel
    masked = log_mel.copy()
    if views.mask_value == "mean":
        fill = log_mel.mean(0, dtype=np.float32).astype(log_mel.dtype)
    else:
        fill = np.full(log_mel.shape[1], np.log(features.DEFAULT.floor), log_mel.dtype)
    first, width = _stretch(len(log_mel), views.mask_max_frames, rng)
    masked[first : first + width] = fill
    first, width = _stretch(log_mel.shape[1], views.mask_max_bins, rng)
    masked[:, first : first + width] = fill[first : first + width]
    return masked


def _stretch(length: int, max_width: int, rng: np.random.Generator) -> tuple[int, int]:
    width = int(rng.integers(min(max_width, length) + 1))
    return int(rng.integers(length - width + 1)), width


def make_views(
    utterance: records.Utterance, views: Views, rng: np.random.Generator
) -> dict[str, Float16[np.ndarray, "_V _T F"]]:
    """Cuts {"global", "local"} views from an utterance, float16 log-mel: the local ones of random augmented versions.

    So are, by their share, global ones; the others are clean.
    """
    versions, places = len(utterance.log_mel), Places(utterance.num_samples, views, rng)
    whole, local = [], []  # of no view, too, an array [0, T, F]
    for _ in range(views.global_count):
        augmented = views.global_augmented > 0 and versions > 1 and rng.random() < views.global_augmented
        version = int(rng.integers(1, versions)) if augmented else 0
        whole.append(crop(utterance, version, places.of_global(), views.global_frames))
    for _ in range(views.local_count):
        version = int(rng.integers(1, versions)) if versions > 1 else 0
        local.append(mask(crop(utterance, version, places.of_local(), views.local_frames), views, rng))
    bins = utterance.log_mel.shape[-1]
    return {
        "global": np.asarray(whole, np.float16).reshape(-1, views.global_frames, bins),
        "local": np.asarray(local, np.float16).reshape(-1, views.local_frames, bins),
    }


def cut_segment(
    recording: records.Recording, start: int | None, frames: int, history: int
) -> tuple[Int16[np.ndarray, " N"], int, bool]:
    """Cuts the samples from which device.cut_view makes a view: ([history + view_samples], first, padded).

    The view is the same stretch of frames that `crop` would cut from the utterance's log-mel.
    """
    first = (start or 0) * features.DEFAULT.hop - features.DEFAULT.n_fft // 2
    begin = max(first, 0) - history
    segment = np.zeros(history + features.view_samples(frames), np.int16)
    piece = recording.samples[max(begin, 0) : max(begin, 0) + len(segment) - max(-begin, 0)]
    segment[max(-begin, 0) : max(-begin, 0) + len(piece)] = piece
    return segment, first, start is None


def make_segments(
    recording: records.Recording, views: Views, rng: np.random.Generator
) -> dict[str, np.ndarray | np.int32]:
    """Cuts the segments of all views, for device.make_views to augment.

    {"global" [G, Ng], "local" [V, Nl] int16, "<name>_first" int32, "<name>_padded" bool, "num_samples" int32}.
    """
    result: dict[str, Any] = {"num_samples": np.int32(recording.num_samples)}
    places, clean = Places(recording.num_samples, views, rng), not views.global_augmented
    for name, count, frames, history, place in (
        ("global", views.global_count, views.global_frames, 0 if clean else augment.RIR_SAMPLES, places.of_global),
        ("local", views.local_count, views.local_frames, augment.RIR_SAMPLES, places.of_local),
    ):
        cuts = [cut_segment(recording, place(), frames, history) for _ in range(count)]
        segments = np.asarray([segment for segment, _, _ in cuts], np.int16)
        result[name] = segments.reshape(count, history + features.view_samples(frames))
        result[f"{name}_first"] = np.asarray([first for _, first, _ in cuts], np.int32)
        result[f"{name}_padded"] = np.asarray([padded for _, _, padded in cuts], bool)
    return result


@dataclass(frozen=True)
class _Chosen:
    """The chosen of a folder's records, each with its number, as Grain wants a source to be."""

    whole: Records
    numbers: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: SupportsIndex) -> tuple[int, records.Utterance | records.Recording]:
        return self.whole.numbered(place.__index__(), self.numbers)


@dataclass(frozen=True)
class _LoadViews(grain.transforms.RandomMap):
    views: Views

    def random_map(  # pyright: ignore[reportIncompatibleMethodOverride] # Grain declares no return
        self, element: tuple[int, records.Utterance | records.Recording], rng: np.random.Generator
    ) -> Mapping[str, np.ndarray | np.int32]:
        number, record = element
        make = make_segments if isinstance(record, records.Recording) else make_views
        return {**make(record, self.views, rng), "number": np.int32(number)}  # pyright: ignore[reportArgumentType]


def steps_per_epoch(num_utterances: int, batch_size: int) -> int:
    """Counts the whole batches in one pass over the data.

    Raises UserError when there is not even one.
    """
    if num_utterances < batch_size:
        raise UserError(f"batch_size={batch_size} is more than the {num_utterances} prepared utterances: lower it")
    return num_utterances // batch_size


def dataset(
    shards: Shards,
    batch_size: int,
    seed: int,
    views: Views,
    process_index: int = 0,
    process_count: int = 1,
    numbers: Int[np.ndarray, " N"] | None = None,
) -> grain.MapDataset:
    """Makes the dataset whose element k is this process's share of the batch of step k: {"global": [b, G, Tg, F], ...}.

    From shards of waveforms it is what make_segments gives, with b in front. b = batch_size / process_count. "number"
    [b] says which utterances they are. Every epoch has its own order, and no utterance is twice in a batch. Only the
    utterances with these `numbers` are used; default: all.
    """
    numbers = np.arange(shards.utterances) if numbers is None else numbers
    in_epoch = steps_per_epoch(len(numbers), batch_size) * batch_size
    source: Any = _Chosen(shards.records, numbers)
    views_of_utterances = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .slice(slice(0, in_epoch))
        .random_map(_LoadViews(views))
        .batch(batch_size // process_count)
        .repeat()
    )
    return views_of_utterances.slice(slice(process_index, None, process_count))


def batches(shares: grain.MapDataset, first_step: int = 0, workers: int = 0) -> grain.DatasetIterator:
    """Iterates over the elements first_step, first_step + 1, ... of a `dataset`, without end.

    `workers` processes read ahead; 0: threads of this process; negative: what automatic_workers says. Closing the
    iterator ends them. Raises UserError when the shared memory that they need is not there.
    """
    workers = automatic_workers(joblib.cpu_count()) if workers < 0 else workers
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    iterator = shares.slice(slice(first_step, None)).to_iter_dataset(ahead)
    if workers:
        check_shared_memory(shares, workers)
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which only commands have parsed
            flags.FLAGS.mark_as_parsed()
        iterator = iterator.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=BATCHES_AHEAD), _ignore_signals
        )
    return iter(iterator)


def check_shared_memory(shares: grain.MapDataset, workers: int) -> None:
    """Raises UserError when the batches that `workers` hold ready exceed the space left in /dev/shm."""
    if not Path(SHARED_MEMORY).is_dir():
        return
    arrays: Any = shares[0]
    batch = sum(np.asarray(array).nbytes for array in arrays.values())
    needed, left = batch * (workers * BATCHES_AHEAD + 2), shutil.disk_usage(SHARED_MEMORY).free
    if needed > left:
        fitting = max(0, (left // batch - 2) // BATCHES_AHEAD)
        raise UserError(
            f"{workers} reader processes hold {needed / 1e6:.0f} MB of batches in {SHARED_MEMORY}, where "
            f"{left / 1e6:.0f} MB are left: give it more (docker run --shm-size={-(-needed // 10**9)}g), or set "
            f"--config.workers={fitting}{'' if fitting else ' (threads, which need none)'}"
        )


def _ignore_signals(*_) -> None:
    """In a worker: schedulers and terminals signal all processes of a run, whose last steps still need batches."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def automatic_workers(cores: int) -> int:
    """Chooses how many processes read ahead: half the cores, at most 16; none on fewer than 8 cores."""
    return min(cores // 2, 16) if cores >= 8 else 0


def held_out_crops(
    shards: Shards, held_out: int, frames: int, count: int = 4
) -> tuple[Float16[np.ndarray, "M {frames} F"], Int[np.ndarray, " M"]]:
    """Crops the last `held_out` utterances, with noise: (log-mels float16, the number of each crop's utterance).

    Of each utterance up to `count` stretches that do not overlap, clean ones with noise of their own, whatever versions
    training uses and whatever its seed: runs on the same corpus can be compared. Utterances too short for two stretches
    are left out. Raises UserError when fewer than two utterances are left.
    """
    rng = np.random.default_rng(0)
    crops, numbers = [], []
    for number in range(max(shards.utterances - held_out, 0), shards.utterances):
        log_mel = shards.records[number].log_mel[0]
        parts = min(count, len(log_mel) // frames)
        if parts < 2:
            continue
        starts = np.sort(rng.integers(len(log_mel) - parts * frames + 1, size=parts)) + frames * np.arange(parts)
        crops += [with_noise(log_mel[start : start + frames], rng) for start in starts]
        numbers += [number] * parts
    if len(set(numbers)) < 2:
        raise UserError(
            f"held_out={held_out}: crop retrieval needs at least two held-out utterances of {2 * frames} frames or more"
        )
    return np.stack(crops), np.asarray(numbers)


def with_noise(log_mel: features.LogMel, rng: np.random.Generator) -> features.LogMel:
    """Adds coloured noise at 0-15 dB to log-mel [T, F], power to power, which the sum of two signals has on average."""
    samples = features.view_samples(len(log_mel))
    noise = augment.coloured_noise(samples, rng.uniform(*augment.NOISE_EXPONENT), rng)
    speech, power = np.exp(log_mel, dtype=np.float64), np.exp(features.log_mel(noise)[: len(log_mel)], dtype=np.float64)
    snr = 10 ** (rng.uniform(*augment.SNR_DB["noise"]) / 10)
    return np.log(speech + power * (speech.sum() / power.sum() / snr)).astype(log_mel.dtype)
