"""Augmentation on the device against the host's: the same features for the same draws, the same distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdpn_jax.data import augment, device, features, pipeline, records
from sdpn_jax.data.pipeline import Views
from sdpn_jax.errors import UserError

FRAMES = 30


def recording(num_samples, seed=0):
    samples = np.random.default_rng(seed).normal(0, 3000, num_samples).astype(np.int16)
    return records.Recording("u", samples)


def segment_of(item, start, frames=FRAMES, history=augment.RIR_SAMPLES):
    """The segment of the view that starts at frame `start`."""
    return pipeline.cut_segment(item, start if item.num_samples >= frames * 160 else None, frames, history)


def device_view(item, start, change=lambda samples: samples, history=augment.RIR_SAMPLES):
    """The log-mel of a view, `change` applied to its segment."""
    segment, first, padded = segment_of(item, start, history=history)
    samples = change(jnp.asarray(segment, jnp.float32) / 32768)
    return device.log_mel_of_view(device.cut_view(samples, first, item.num_samples, padded, FRAMES))


@pytest.mark.parametrize("history", [0, augment.RIR_SAMPLES])
@pytest.mark.parametrize("num_samples", [FRAMES * 160, 12345, 30000])
def test_clean_views_are_stretches_of_the_host_log_mel(num_samples, history):
    item = recording(num_samples)
    log_mel = features.log_mel(item.samples.astype(np.float32) / 32768)
    for start in {0, 1, 2, 7, len(log_mel) - FRAMES - 1, len(log_mel) - FRAMES}:
        if 0 <= start <= len(log_mel) - FRAMES:
            view = device_view(item, start, history=history)
            np.testing.assert_allclose(view, log_mel[start : start + FRAMES], atol=2e-3)


@pytest.mark.parametrize("num_samples", [1600, 2001, FRAMES * 160 - 1])
def test_short_utterances_are_followed_by_silence(num_samples):
    item = recording(num_samples)
    waveform = np.concatenate([item.samples.astype(np.float32) / 32768, np.zeros(2 * FRAMES * 160, np.float32)])
    np.testing.assert_allclose(device_view(item, 0), features.log_mel(waveform)[:FRAMES], atol=2e-3)


def test_the_same_start_as_the_host_for_the_same_draw():
    item, views = recording(16000), Views(global_frames=FRAMES, local_frames=20, local_count=2, apart=True)
    utterance = records.Utterance("u", 16000, item.log_mel, np.zeros((1, 3, 80), np.float16))
    for seed in range(5):
        segments = pipeline.make_segments(item, views, np.random.default_rng(seed))
        places = pipeline.Places(16000, views, np.random.default_rng(seed))
        starts = {"global": [places.of_global()], "local": [places.of_local(), places.of_local()]}
        for name, frames, history in (("global", FRAMES, 0), ("local", 20, augment.RIR_SAMPLES)):
            views_of = zip(starts[name], segments[name], segments[f"{name}_first"], strict=True)
            for start, segment, first in views_of:
                samples = jnp.asarray(segment[history:], jnp.float32) / 32768
                view = device.log_mel_of_view(device.cut_view(samples, first, 16000, False, frames))
                crop = pipeline.crop(utterance, 0, start, frames).astype(np.float32)
                np.testing.assert_allclose(view, crop, atol=1e-2)  # float16


@pytest.mark.parametrize("start", [0, 1, 40, 150])
def test_reverberation_equals_the_host(start):
    item, rng = recording(40000), np.random.default_rng(1)
    rir = augment.synthetic_rir(0.3, rng)
    gain = 0.7
    host = features.log_mel((gain * augment.convolve_rir(item.samples / 32768, rir)).astype(np.float32))
    rir = np.pad(rir / np.sqrt(np.sum(np.square(rir))), (0, augment.RIR_SAMPLES - len(rir)))
    view = device_view(item, start, lambda samples: device.reverberate(samples, jnp.asarray(rir), gain))
    np.testing.assert_allclose(view, host[start : start + FRAMES], atol=5e-3)


def test_noise_equals_the_host():
    """Over a segment that is the whole utterance, where both measure the power of the same samples."""
    samples, noise = (np.random.default_rng(i).normal(0, 0.1, 8000).astype(np.float32) for i in range(2))
    audible = np.arange(8000) < 6000
    host = augment.mix(samples[:6000], noise[:6000], 7.0)
    mixed = np.asarray(device.mix(jnp.where(audible, samples, 0), noise, 7.0, audible))
    np.testing.assert_allclose(mixed[:6000], host, atol=1e-6)
    assert not mixed[6000:].any()
    silent = np.asarray(device.mix(samples, np.zeros_like(noise), 7.0, audible))
    np.testing.assert_array_equal(silent, samples)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Two kinds of noise that a spectrum tells apart, and a room that is one echo after 100 samples."""
    tones = np.stack([3000 * np.sin(2 * np.pi * f * np.arange(20000) / 16000) for f in (1000, 4000)])
    rirs = np.zeros((1, augment.RIR_SAMPLES), np.float32)
    rirs[0, [0, 100]] = 0.8, 0.6
    made = device.Bank(("noise", "speech"), tones[:, None].astype(np.int16), rirs)
    folder = tmp_path_factory.mktemp("bank")
    device.save_bank(made, folder)
    loaded = device.load_bank(folder)
    assert loaded.kinds == made.kinds
    np.testing.assert_array_equal(loaded.noise, made.noise)
    return loaded


def test_shares_ranges_and_kinds(bank):
    """An impulse is augmented: its echo tells of reverberation, what a period of both tones later is left, of noise."""
    draws, length, period = 1500, 4000, 320
    impulse = jnp.zeros(length).at[10].set(1.0)
    arrays = {"noise": jnp.asarray(bank.noise), "rirs": jnp.asarray(bank.rirs)}
    make = jax.jit(jax.vmap(lambda key: device.augment_segment(key, impulse, impulse >= 0, arrays, bank.kinds)))
    out = np.asarray(make(jax.random.split(jax.random.key(0), draws)), np.float64)
    direct, echo = (out[:, place] - out[:, place + period] for place in (10, 110))
    noise_power = np.mean(np.square(out[:, 200:]), axis=1)
    noisy, reverb = noise_power > 1e-9, np.abs(echo) > 0.1
    measured = {"none": ~noisy & ~reverb, "reverb": reverb & ~noisy, "noise": noisy & ~reverb, "both": noisy & reverb}
    for kind, share in {"none": 1 / 6, "reverb": 1 / 8, "noise": 3 / 8, "both": 1 / 3}.items():
        assert abs(measured[kind].mean() - share) < 4 * np.sqrt(share * (1 - share) / draws), kind

    gain_db = 20 * np.log10(direct[reverb] / 0.8)
    assert -7.05 < gain_db.min() < -6.8
    assert 2.8 < gain_db.max() < 3.05
    spectrum = np.abs(np.fft.rfft(out[:, 200:], axis=1))
    kinds = spectrum[:, [round(f * 3800 / 16000) for f in (1000, 4000)]].argmax(1)
    assert abs((kinds[noisy] == 0).mean() - 1 / 2) < 4 * np.sqrt(1 / 4 / noisy.sum())
    signal_power = np.where(reverb, np.square(direct / 0.8), 1.0) / length
    snr = 10 * np.log10(signal_power[noisy] / noise_power[noisy])
    for kind, (low, high) in enumerate((augment.SNR_DB["noise"], augment.SNR_DB["speech"])):
        assert low - 0.1 < snr[kinds[noisy] == kind].min() < low + 1
        assert high - 1 < snr[kinds[noisy] == kind].max() < high + 0.1


@pytest.mark.parametrize("value", ["mean", "silence"])
def test_masking(value):
    log_mel = np.random.default_rng(0).normal(size=(40, 80)).astype(np.float32)
    mask = functools.partial(device.mask, probability=0.5, max_frames=9, max_bins=5, value=value)
    out = np.asarray(jax.jit(jax.vmap(lambda key: mask(key, log_mel)))(jax.random.split(jax.random.key(0), 800)))
    fill = np.broadcast_to(log_mel.mean(0) if value == "mean" else np.log(1e-6), (40, 80))
    hidden = out != log_mel
    np.testing.assert_allclose(out[hidden], np.broadcast_to(fill, out.shape)[hidden], rtol=1e-5)
    frames, bins = hidden.all(2).sum(1), hidden.all(1).sum(1)
    assert set(frames) == set(range(10))
    assert set(bins) == set(range(6))
    untouched = 0.5 + 0.5 / 10 / 6
    assert abs((~hidden.any((1, 2))).mean() - untouched) < 4 * np.sqrt(untouched * (1 - untouched) / 800)


def test_views_of_a_batch(bank):
    views = Views(global_frames=40, local_count=2, local_frames=20)
    items = [recording(n, n) for n in (2000, 9000, 20000)]
    segments = [pipeline.make_segments(item, views, np.random.default_rng(i)) for i, item in enumerate(items)]
    batch = {name: np.stack([segment[name] for segment in segments]) for name in segments[0]}
    arrays = {"noise": jnp.asarray(bank.noise), "rirs": jnp.asarray(bank.rirs)}
    make = jax.jit(lambda key, batch: device.make_views(key, batch, arrays, bank.kinds, views))
    first, again, other = (make(jax.random.key(seed), batch) for seed in (0, 0, 1))
    assert first["global"].shape == (3, 1, 40, 80)
    assert first["local"].shape == (3, 2, 20, 80)
    assert all(np.isfinite(view).all() for view in first.values())
    np.testing.assert_array_equal(first["local"], again["local"])
    np.testing.assert_array_equal(first["global"], other["global"])  # global views are clean
    assert np.any(np.asarray(first["local"]) != np.asarray(other["local"]))


def test_global_views_are_augmented_by_their_share(bank):
    """The tones of the bank are heard in them; the local views are what they are without."""
    share = 0.5
    item, arrays = recording(20000, 0), {"noise": jnp.asarray(bank.noise), "rirs": jnp.asarray(bank.rirs)}
    made = {}
    for augmented in (0.0, share):
        views = Views(global_count=100, global_frames=40, local_count=1, local_frames=20, global_augmented=augmented)
        segments = pipeline.make_segments(item, views, np.random.default_rng(0))
        batch = {name: value[None] for name, value in segments.items()}
        make = jax.jit(functools.partial(device.make_views, kinds=bank.kinds, views=views))
        made[augmented] = make(jax.random.key(3), batch, arrays)
    np.testing.assert_array_equal(made[0.0]["local"], made[share]["local"])
    apart = np.abs(made[0.0]["global"] - made[share]["global"]).max((0, 2, 3))
    expected = share * 5 / 6  # a sixth of the augmented ones is left as it is
    assert abs((apart > 0.01).mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / 100)
    np.testing.assert_allclose(np.sort(apart)[:5], 0, atol=1e-3)


def test_distortions_change_the_augmented_views_alone(bank):
    item, arrays = recording(20000, 0), {"noise": jnp.asarray(bank.noise), "rirs": jnp.asarray(bank.rirs)}
    views = Views(global_frames=40, local_count=30, local_frames=20, mask_probability=0.0)
    batch = {name: v[None] for name, v in pipeline.make_segments(item, views, np.random.default_rng(0)).items()}
    plain, gained = (
        jax.jit(functools.partial(device.make_views, kinds=bank.kinds, views=views, distortions=names))(
            jax.random.key(3), batch, arrays
        )
        for names in ((), ("gain",))
    )
    np.testing.assert_array_equal(plain["global"], gained["global"])
    moved = np.asarray(gained["local"] - plain["local"])[0]  # by a gain, alike wherever it is not near silence
    levels = np.median(moved, axis=(1, 2))
    assert np.mean(np.abs(moved - levels[:, None, None]) < 0.01) > 0.95
    decibels = levels * 10 / np.log(10)
    assert -25 <= decibels.min() < -15 and -5 < decibels.max() <= 5


def test_a_bank_is_a_function_of_the_seed(tmp_path):
    one, two = (device.make_bank(augment.Sources(), 0, stretches=3, seconds=0.5, rirs=4) for _ in range(2))
    assert one.kinds == ("noise",)
    assert one.noise.shape == (1, 3, 8000)
    np.testing.assert_array_equal(one.noise, two.noise)
    np.testing.assert_allclose(np.sum(np.square(one.rirs), axis=1), 1, rtol=1e-5)
    assert np.all(np.argmax(np.abs(one.rirs), axis=1) == 0)
    with pytest.raises(UserError, match="bank.npz: no such file"):
        device.load_bank(tmp_path)
