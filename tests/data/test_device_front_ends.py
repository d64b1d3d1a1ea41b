"""Features computed by JAX against those computed by NumPy, and against numbers that the toolkits printed."""

import jax
import numpy as np
import pytest

from sdpn_jax.data import device_front_ends, front_ends

TOOLKITS = {"kaldi80": "ecapa_3dspeaker", "wespeaker": "resnet34_wespeaker", "speechbrain": "ecapa_speechbrain"}


def recording(seed, num_samples):
    """A voice of 20 harmonics that swells and falls silent, on an offset, in faint noise."""
    rng, time_s = np.random.default_rng(seed), np.arange(num_samples) / 16000
    pitch = 110 + 30 * seed + 20 * np.sin(9 * time_s)
    voice = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / 16000) / k for k in range(1, 21))
    return (0.1 * voice * np.sin(5 * time_s) ** 2 + 1e-4 * rng.normal(size=num_samples) + 0.01).astype(np.float32)


@pytest.mark.parametrize("name", front_ends.FRONT_ENDS)
@pytest.mark.parametrize("num_samples", [1600, 23_457])
def test_as_on_the_host(name, num_samples):
    batch = np.stack([recording(seed, num_samples) for seed in range(2)])
    found = np.asarray(jax.jit(device_front_ends.FRONT_ENDS[name])(batch))
    for row, samples in zip(found, batch, strict=True):
        truth = front_ends.FRONT_ENDS[name](samples)
        assert row.shape == truth.shape
        error = np.abs(row - truth) / truth.std()
        assert error.mean() < 1e-4
        assert error.max() < 1e-2, "a bin far below its frame's loudest"


@pytest.mark.parametrize("name", TOOLKITS)
def test_as_the_toolkits(golden, name):
    with np.load(golden / "encoders" / TOOLKITS[name] / "expected.npz") as expected:
        samples = expected["waveform_0"] / np.float32(32768)
        truth = expected["features_0"]
    found = np.asarray(device_front_ends.FRONT_ENDS[name](samples[None])[0])
    assert np.abs(found - truth).mean() < 1e-4 * truth.std()
