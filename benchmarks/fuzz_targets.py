"""What benchmarks/fuzz.py damages and who reads it: {target: (whole files, reader, what it may raise)}."""

from pathlib import Path

import numpy as np
from audio_files import KINDS, written

from sdpn_jax.data import audio, recordings
from sdpn_jax.errors import UserError

Files = list[tuple[str, bytes]]


def audio_files(folder: Path) -> Files:
    """Half a second of noise in thirty kinds."""
    rng, files = np.random.default_rng(0), []
    for kind in KINDS:
        rate = 48000 if kind in ("webm", "ac3") else 16000
        written(folder / kind, rng.normal(0, 0.1, rate // 2), rate, kind)
        files.append((kind, (folder / kind).read_bytes()))
        (folder / kind).unlink()
    return files


def read_audio(path: Path) -> None:
    audio.seconds_of(path)
    waveform = audio.read_audio(path)
    assert np.isfinite(waveform).all() and waveform.dtype == np.float32
    audio.hints_of(waveform)


def list_files(folder: Path) -> Files:
    """A list of paths, a wav.scp with segments, manifests."""
    (folder / "a.wav").write_bytes(b"x")
    texts = {
        "files.txt": "a.wav\n/x/b.wav\nc d.wav\n",
        "wav.scp": "\ufeffu1 a.wav\nu2\t/x/b.wav\nu3 c d.wav\n",
        "segments": "u1-0 u1 0.0 1.5\nu1-1 u1 1.5 -1\nu2-0 u2 2 3 1\n",
        "nemo.json": '{"audio_filepath": "a.wav", "offset": 1.5, "duration": 3.0, "label": "x"}\n' * 3,
        "lhotse.jsonl": '{"id": "c", "start": 0.2, "duration": 0.5, "channel": 0, "recording": {"sources": '
        '[{"type": "file", "source": "a.wav"}]}}\n',
    }
    for name in ("wav.scp", "segments"):
        (folder / name).write_text(texts[name])
    return [(name, text.encode()) for name, text in texts.items()]


def read_list(path: Path) -> None:
    recordings.find_utterances(path.with_name("wav.scp") if path.name == "segments" else path)


TARGETS = {
    "audio": (audio_files, read_audio, (audio.AudioError, UserError)),
    "lists": (list_files, read_list, UserError),
}
