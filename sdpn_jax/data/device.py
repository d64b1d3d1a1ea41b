"""Augmentation on the accelerator: waveform crops -> noisy, reverberant, masked log-mel views, inside jit.

The same distributions and the same features as augment.py, features.py and pipeline.py make on the host, drawn fresh
for every view of every step from a key. Only the power for the signal-to-noise ratio is of the crop, not of the whole
utterance. Shapes: B utterances, V views, T frames, F mel bins; samples are float32 in [-1, 1].
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int, Int16, PRNGKeyArray

from sdpn_jax import storage
from sdpn_jax.arrays import read_npz
from sdpn_jax.data import augment, features
from sdpn_jax.data.device_channels import distort
from sdpn_jax.data.pipeline import Views
from sdpn_jax.data.shards import Shards
from sdpn_jax.errors import UserError

MARGIN = features.DEFAULT.n_fft // 2  # samples that the first and the last frame see beyond the view
HOP = features.DEFAULT.hop
Samples: TypeAlias = Float[Array, " N"]
AUGMENTATION = 2  # folded into the seed's key, which alone draws the network, and with 1 the prototypes
BANK_STRETCHES, BANK_SECONDS, BANK_RIRS = 200, 10.0, 1000  # of each kind of noise; 64 MB a kind, 32 MB of rooms


@dataclass(frozen=True)
class Bank:
    """Noise and rooms kept on the device: noise int16 [kinds, N, S], rirs float32 [R, RIR_SAMPLES] of unit energy.

    `kinds` names the first axis of `noise` (see augment.SNR_DB); each response begins with its direct path.
    """

    kinds: tuple[str, ...]
    noise: Int16[np.ndarray, "kinds N S"]
    rirs: Float32[np.ndarray, "R L"]


def make_bank(
    sources: augment.Sources,
    seed: int,
    stretches: int = BANK_STRETCHES,
    seconds: float = BANK_SECONDS,
    rirs: int = BANK_RIRS,
) -> Bank:
    """Draws noise and room impulse responses for the device from the same sources as the host's augmentation.

    For each kind of noise `stretches` of `seconds`, and `rirs` responses; made up where the sources are empty.
    """
    rng, samples = np.random.default_rng(seed), round(seconds * features.DEFAULT.sample_rate)
    kinds = tuple(sorted(sources.noises)) or ("noise",)
    noise = np.empty((len(kinds), stretches, samples), np.int16)
    for number, kind in enumerate(kinds):
        for stretch in noise[number]:
            stretch[:] = _as_int16(augment.noise_of(kind, sources, samples, rng))
    responses = np.zeros((rirs, augment.RIR_SAMPLES), np.float32)
    for response in responses:
        rir = augment.rir_of(sources, rng)
        rir = rir[np.argmax(np.abs(rir)) :][: augment.RIR_SAMPLES]
        response[: len(rir)] = rir / np.sqrt(np.sum(np.square(rir)))
    return Bank(kinds, noise, responses)


def save_bank(bank: Bank, directory: str | os.PathLike) -> str:
    """Writes <directory>/bank.npz; returns a digest of its content."""
    storage.write_npz(
        storage.place(directory) / "bank.npz", kinds=np.asarray(bank.kinds), noise=bank.noise, rirs=bank.rirs
    )
    digest = hashlib.sha256(" ".join(bank.kinds).encode())
    for array in (bank.noise, bank.rirs):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def load_bank(directory: str | os.PathLike) -> Bank:
    """Reads what save_bank wrote. Raises UserError when it is missing or damaged."""
    path = storage.place(directory) / "bank.npz"
    found = read_npz(path, "a bank of noise and rooms")
    try:
        bank = Bank(tuple(found["kinds"].tolist()), found["noise"], found["rirs"])
        if not set(bank.kinds) <= set(augment.SNR_DB) or bank.noise.dtype != np.int16 or bank.noise.ndim != 3:
            raise ValueError("odd noise")
        if len(bank.noise) != len(bank.kinds) or bank.rirs.dtype != np.float32 or bank.rirs.ndim != 2:
            raise ValueError("odd rooms")
        if 0 in bank.noise.shape or 0 in bank.rirs.shape or not np.isfinite(bank.rirs).all():
            raise ValueError("nothing, or no numbers, in it")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): run sdpn prepare --store=waveform again") from error
    return bank


def _as_int16(noise: Float[np.ndarray, " N"]) -> Int16[np.ndarray, " N"]:
    """Scaled so that its largest sample is full scale; a mixture scales it again to its signal-to-noise ratio."""
    return np.round(noise * (32767 / max(np.abs(noise).max(), 1e-9))).astype(np.int16)


def log_mel_of_view(samples: Float[Array, "*n N"]) -> Float[Array, "*n T F"]:
    """log-mel [..., T, F] of view_samples(T) samples [...], the formula of features.py without padding."""
    window, filterbank = features.window_and_filterbank(features.DEFAULT)
    frames = 1 + (samples.shape[-1] - 2 * MARGIN) // HOP
    index = HOP * jnp.arange(frames)[:, None] + np.arange(2 * MARGIN)
    spectrum = jnp.fft.rfft(samples[..., index] * window)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.matmul(power, filterbank, precision=jax.lax.Precision.HIGHEST)
    return jnp.log(mel + features.DEFAULT.floor)


def cut_view(
    segment: Samples,
    first: Int[ArrayLike, ""],
    num_samples: Int[ArrayLike, ""],
    padded: Bool[ArrayLike, ""],
    frames: int,
) -> Float[Array, " view"]:
    """Cuts out the samples that a view of `frames` frames sees from its segment [history + view_samples(frames)].

    first: the utterance's sample that the view's first frame begins to see, negative at the start of an utterance.
    Beyond both ends the utterance is reflected, as centred frames do; `padded` says that silence follows its end.
    The segment's sample `history` is the utterance's sample max(first, 0).
    """
    length = features.view_samples(frames)
    history = segment.shape[-1] - length
    wanted, last = jnp.abs(first + jnp.arange(length)), num_samples - 1
    reflected = jnp.where(padded | (wanted <= last), wanted, 2 * last - wanted)
    view = jnp.take(segment, reflected - jnp.maximum(first, 0) + history, mode="clip")
    return jnp.where(padded & (reflected > last), 0.0, view)


def reverberate(segment: Samples, rir: Float[Array, " L"], gain: Float[Array, ""] | float) -> Samples:
    """Computes gain * (segment * rir) by FFT, cut to the segment's length; the direct path is at no delay."""
    size = _fast_length(segment.shape[-1] + rir.shape[-1] - 1)
    wet = jnp.fft.irfft(jnp.fft.rfft(segment, size) * jnp.fft.rfft(rir, size), size)
    return gain * wet[: segment.shape[-1]]


def _fast_length(size: int) -> int:
    """The least 2^k or 3 * 2^k that is not below `size`."""
    power = 1 << (size - 1).bit_length()
    return 3 * power // 4 if 3 * power // 4 >= size else power


def mix(view: Samples, noise: Samples, snr_db: Float[ArrayLike, ""], audible: Bool[Array, " N"]) -> Samples:
    """Adds noise to a view at `snr_db` over the `audible` samples; the others stay as they are."""
    power = lambda x: jnp.sum(jnp.square(x), where=audible)  # noqa: E731
    noise_power = power(noise)
    scale = jnp.sqrt(power(view) / jnp.maximum(noise_power, 1e-20) / 10 ** (snr_db / 10))
    return view + jnp.where(audible & (noise_power > 0), scale * noise, 0.0)


def augment_segment(
    key: PRNGKeyArray, segment: Samples, audible: Bool[Array, " N"], bank: dict, kinds: tuple[str, ...]
) -> Samples:
    """Augments a segment with the probabilities of augment.augment."""
    keys = jax.random.split(key, 7)
    draw, which = jax.random.uniform(keys[0]), jax.random.uniform(keys[1])
    one, both = (draw >= 1 / 6) & (draw < 4 / 6), draw >= 4 / 6
    with_reverb, with_noise = both | (one & (which < 0.25)), both | (one & (which >= 0.25))

    rir = bank["rirs"][jax.random.randint(keys[2], (), 0, len(bank["rirs"]))]
    gain = 10 ** (jax.random.uniform(keys[3], minval=augment.REVERB_GAIN_DB[0], maxval=augment.REVERB_GAIN_DB[1]) / 20)
    wet = jnp.where(with_reverb, reverberate(segment, rir, gain), segment)
    wet = jnp.where(audible, wet, 0.0)  # the room's echo does not go on into the silence after an utterance

    kind = jax.random.randint(keys[4], (), 0, len(kinds))
    low, high = jnp.asarray([augment.SNR_DB[name] for name in kinds]).T
    snr = jax.random.uniform(keys[5], minval=low[kind], maxval=high[kind])
    number, start = (jax.random.randint(k, (), 0, n) for k, n in zip(
        jax.random.split(keys[6]), (bank["noise"].shape[1], bank["noise"].shape[2] - len(segment) + 1), strict=True
    ))  # fmt: skip
    noise = jax.lax.dynamic_slice(bank["noise"], (kind, number, start), (1, 1, len(segment))).reshape(-1)
    return jnp.where(with_noise, mix(wet, noise.astype(jnp.float32), snr, audible), wet)


def mask(
    key: PRNGKeyArray, log_mel: Float[Array, "T F"], probability: float, max_frames: int, max_bins: int, value: str
) -> Float[Array, "T F"]:
    """Masks a log-mel as pipeline.mask does, on the device."""
    keys = jax.random.split(key, 5)
    frames, bins = log_mel.shape
    floor = jnp.full(bins, np.log(features.DEFAULT.floor), log_mel.dtype)
    fill = log_mel.mean(0) if value == "mean" else floor
    hidden = _stretch(keys[0], keys[1], frames, max_frames)[:, None] | _stretch(keys[2], keys[3], bins, max_bins)
    return jnp.where(hidden & (jax.random.uniform(keys[4]) < probability), fill, log_mel)


def _stretch(key_width: PRNGKeyArray, key_start: PRNGKeyArray, length: int, max_width: int) -> Bool[Array, " {length}"]:
    """A random stretch of 0 to `max_width` places among `length`, as bool [length]."""
    width = jax.random.randint(key_width, (), 0, min(max_width, length) + 1)
    start = jax.random.randint(key_start, (), 0, length - width + 1)
    places = jnp.arange(length)
    return (places >= start) & (places < start + width)


def make_views(
    key: PRNGKeyArray, batch: dict, bank: dict, kinds: tuple[str, ...], views: Views, distortions: Sequence[str] = ()
) -> dict[str, Float32[Array, "B _V _T F"]]:
    """Turns waveform segments into {"global", "local"} views, float32 log-mel: the local ones augmented and masked.

    So are augmented, by their share, global ones; the others are clean. batch: as pipeline.dataset gives it for shards
    of waveforms; views: pipeline.Views; bank: {"noise", "rirs"}; distortions: of device_channels.
    """

    def augmented(key, segment, first, num_samples, frames):
        history = len(segment) - features.view_samples(frames)
        place = jnp.maximum(first, 0) - history + jnp.arange(len(segment))
        audible = (place >= 0) & (place < num_samples)
        segment = augment_segment(key, segment, audible, bank, kinds)
        return distort(jax.random.fold_in(key, 1), segment, audible, distortions) if distortions else segment

    def whole(key, segment, first, num_samples, padded):
        samples = segment.astype(jnp.float32) / 32768
        if views.global_augmented:
            key_choice, key_augment = jax.random.split(key)
            chosen = jax.random.uniform(key_choice) < views.global_augmented
            noisy = augmented(key_augment, samples, first, num_samples, views.global_frames)
            samples = jnp.where(chosen, noisy, samples)
        return log_mel_of_view(cut_view(samples, first, num_samples, padded, views.global_frames))

    def local(key, segment, first, num_samples, padded):
        key_augment, key_mask = jax.random.split(key)
        samples = augmented(key_augment, segment.astype(jnp.float32) / 32768, first, num_samples, views.local_frames)
        log_mel = log_mel_of_view(cut_view(samples, first, num_samples, padded, views.local_frames))
        return mask(key_mask, log_mel, views.mask_probability, views.mask_max_frames, views.mask_max_bins,
                    views.mask_value)  # fmt: skip

    keys = {
        "local": jax.random.split(key, batch["local"].shape[:2]),
        "global": jax.random.split(jax.random.fold_in(key, 1), batch["global"].shape[:2]),
    }
    lengths = lambda name: jnp.broadcast_to(batch["num_samples"][:, None], batch[name].shape[:2])  # noqa: E731
    arguments = {
        name: (keys[name], batch[name], batch[f"{name}_first"], lengths(name), batch[f"{name}_padded"])
        for name in ("global", "local")
    }
    made = {"local": jax.vmap(jax.vmap(local))(*arguments["local"])}
    if views.global_count:
        return {"global": jax.vmap(jax.vmap(whole))(*arguments["global"]), **made}
    none = jnp.zeros((len(batch["local"]), 0, views.global_frames, features.DEFAULT.mel_bins), made["local"].dtype)
    return {"global": none, **made}


def views_of_step(shards: Shards, seed: int, views: Views) -> tuple[dict, Callable]:
    """Returns (bank arrays, function (step, batch, bank arrays) -> views) for open shards.

    Batches of prepared features are views already. Segments of waveforms are augmented with a key that is a function of
    (seed, step).
    """
    if shards.store == "log_mel":
        return {}, lambda step, batch, arrays: batch
    bank = load_bank(shards.folder)

    def of_step(step, batch, arrays):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), AUGMENTATION), step)
        made = make_views(key, batch, arrays, bank.kinds, views, shards.distortions)
        return {**made, "number": batch["number"]}

    return {"noise": bank.noise, "rirs": bank.rirs}, of_step
