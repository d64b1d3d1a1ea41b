"""How fast recordings are decoded to 16 kHz mono: each kind beside librosa.load and soundfile.read alone.

    python benchmarks/decoding.py [--recording=SPEECH.wav] [--seconds=10] [--repeats=15] [--before=OLD_CHECKOUT]

`--before` also times `read_audio` of another checkout of this project, in a process of its own that takes turns with
this one.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import librosa
import measure
import numpy as np
import soundfile

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from audio_files import written

from sdpn_jax.data import audio

KINDS = {"wav": 16000, "wav of 48 kHz": 48000, "flac": 16000, "ogg": 16000, "opus": 16000, "mp3": 16000, "m4a": 16000,
         "webm": 48000, "wma": 16000}  # fmt: skip
EXTENSIONS = {"opus": "ogg"}
SERVER = """
import sys, time
from sdpn_jax.data import audio
for line in sys.stdin:
    started = time.perf_counter()
    audio.read_audio(line.strip())
    print(time.perf_counter() - started, flush=True)
"""


def soundfile_alone(path: Path) -> None:
    soundfile.read(path, dtype="float32")


def librosa_load(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        librosa.load(path, sr=16000)


def seconds_of(works: dict, path: Path, repeats: int) -> dict[str, float]:
    """Median seconds of each work that can read the file at all, taken in turn."""
    able = {}
    for name, work in works.items():
        try:
            work(path)
        except Exception:  # each library raises its own for a kind that it does not know
            continue
        able[name] = lambda work=work: work(path)
    return measure.interleaved(able, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", help="Speech at 16 kHz; default: noise.")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--before", help="Another checkout.")
    args = parser.parse_args()
    count = int(16000 * args.seconds)
    samples = np.random.default_rng(0).normal(0, 0.1, count)
    if args.recording:
        samples = np.resize(audio.read_audio(args.recording), count)
    works = {"ours": audio.read_audio, "soundfile.read": soundfile_alone, "librosa.load": librosa_load}
    if args.before:
        server = subprocess.Popen([sys.executable, "-c", SERVER], env={"PYTHONPATH": args.before}, text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip

        def before(path: Path) -> None:
            print(path, file=server.stdin, flush=True)
            server.stdout.readline()

        works["before"] = before
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rate in KINDS.items():
            kind = name.split()[0]
            path = Path(folder) / f"a.{EXTENSIONS.get(kind, kind)}"
            written(
                path,
                np.interp(np.arange(int(rate * args.seconds)) / rate, np.arange(count) / 16000, samples),
                rate,
                kind,
            )
            rows[name] = {what: f"{1 / taken:,.0f}" for what, taken in seconds_of(works, path, args.repeats).items()}
    table = {"": {name: name for name in works}}
    table |= {kind: {name: row.get(name, "-") for name in works} for kind, row in rows.items()}
    measure.show(f"files of {args.seconds:g} s a second, one process, on {measure.machine()}", table, 14)


if __name__ == "__main__":
    main()
