"""A corpus of synthetic speakers for the demo, spoken by espeak-ng, so that it needs neither data nor network.

Library and voices come from the PyPI package `espeakng-loader`. espeak-ng is licensed under the GPL, version 3; it is
loaded at run time, by the demo alone, and nothing of it is part of this project.
"""

import ctypes
import itertools
import json
import multiprocessing
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import scipy.signal
import soundfile
import soxr
from tqdm import tqdm

from sdpn_jax.data import audio, augment
from sdpn_jax.errors import UserError

PARTS = 4  # of the corpus, spoken one beside another
# Variants that keep the accent's formants apart; robots, whispers and croaks are left out, and six voices that sound
# different each time they say the same.
VARIANTS = (
    "adam Alex Andrea Andy anika Annie antonio aunty belinda benjamin boris caleb david Denis Diogo ed edward edward2 "
    "f1 f4 Gene Gene2 grandma grandpa gustave Henrique Hugo ian iven iven2 iven3 iven4 Jacky john kaukovalta klatt "
    "klatt2 klatt3 klatt4 Lee linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo Marco Mario max Michael michel miguel Mike mike2 "
    "norbert pablo paul pedro quincy Reed rob robert shelby steph steph2 steph3 travis zac"
).split()
ACCENTS = ("en", "en-us", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-us-nyc")
SUBJECTS = (
    "the old gardener|my neighbour|a patient teacher|the night train|our youngest cousin|the harbour master|every "
    "student|a careful painter|the tall engineer|her brother|the village baker|that curious fox|the new doctor|a "
    "tired sailor|the orchestra|his grandmother|the museum guide|a quiet stranger|the river|the committee"
).split("|")
VERBS = (
    "carried|forgot|repaired|described|borrowed|painted|discovered|measured|promised|followed|answered|opened|"
    "collected|remembered|watched|divided|questioned|lifted|admired|replaced"
).split("|")
OBJECTS = (
    "seven wooden boxes|the broken window|a letter from the coast|the longest bridge|two baskets of apples|the yellow "
    "umbrella|an unusual question|the whole harvest|a map of the mountains|thirty small lanterns|the first chapter|a "
    "piece of cold bread|the garden gate|five white horses|the missing key|a very old clock|the weather report|some "
    "green paint|the second violin|a pair of gloves"
).split("|")
ENDINGS = (
    "before the rain began|on a Thursday morning|without saying a word|near the railway station|for almost an hour|"
    "while the others slept|in the middle of winter|and then walked home|because nobody else would|with great care|"
    "under the kitchen table|after the long meeting|as usual|just in time|at the edge of the forest|until midnight"
).split("|")


@dataclass(frozen=True)
class Speaker:
    """What stays the same in everything that one synthetic person says."""

    name: str
    voice: str  # espeak-ng voice and variant
    pitch: float  # 0 to 99
    pitch_range: float  # 0 to 99
    rate: float  # words a minute
    formant_scale: float  # over 1: a shorter vocal tract


def make_corpus(
    output: str | os.PathLike,
    train_speakers: int = 200,
    train_utterances: int = 3,
    test_speakers: int = 20,
    test_utterances: int = 6,
    seed: int = 0,
) -> dict:
    """Writes <output>/train/<speaker>/<n>.flac, test/... by other speakers, and trials.txt; returns its metadata.

    16 kHz, 16 bit; every utterance of a few seconds through its own channel (equaliser, often a room, noise, gain).
    trials.txt holds all pairs of test utterances, `1 path path` for one speaker and `0 path path` for two. A corpus
    that is already there is reused. Raises UserError when espeak-ng cannot be loaded.
    """
    output = Path(output)
    metadata_path = output / "metadata.json"
    wanted = {"train_speakers": train_speakers, "train_utterances": train_utterances, "test_speakers": test_speakers,
              "test_utterances": test_utterances, "seed": seed}  # fmt: skip
    if metadata_path.exists() and json.loads(metadata_path.read_text()) == wanted:
        return wanted
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    speakers = draw_speakers(train_speakers + test_speakers, seed)
    jobs = [("train", speaker, i) for speaker in speakers[test_speakers:] for i in range(train_utterances)]
    jobs += [("test", speaker, i) for speaker in speakers[:test_speakers] for i in range(test_utterances)]
    # espeak-ng keeps state from one utterance to the next: every part starts in a process of its own, so that the
    # corpus is a function of the seed whatever the number of cores.
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(PARTS, joblib.cpu_count()), maxtasksperchild=1) as pool:
        parts = [(temporary, jobs[part::PARTS], seed, part) for part in range(PARTS)]
        for _ in tqdm(pool.imap(_speak_part, parts, chunksize=1), total=PARTS, unit="part", desc="speaking"):
            pass
    test = [f"test/{speaker.name}/{i}.flac" for speaker in speakers[:test_speakers] for i in range(test_utterances)]
    (temporary / "trials.txt").write_text(
        "".join(f"{int(Path(a).parent == Path(b).parent)} {a} {b}\n" for a, b in itertools.combinations(test, 2))
    )
    (temporary / "metadata.json").write_text(json.dumps(wanted) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)
    return wanted


def _speak_part(part: tuple[Path, list, int, int]) -> None:
    folder, jobs, seed, number = part
    with Espeak() as espeak:
        for i, (subset, speaker, utterance) in enumerate(jobs):
            rng = np.random.default_rng([seed, 1, number, i])
            path = folder / subset / speaker.name / f"{utterance}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, record(speak(espeak, speaker, rng), rng), audio.SAMPLE_RATE, subtype="PCM_16")


def draw_speakers(count: int, seed: int) -> list[Speaker]:
    """Draws `count` different speakers, each with its own voice variant, pitch, rate and vocal tract."""
    rng = np.random.default_rng([seed, 0])
    order = np.concatenate([rng.permutation(len(VARIANTS)) for _ in range(-(-count // len(VARIANTS)))])[:count]
    return [
        Speaker(
            name=f"speaker{i:03d}",
            voice=f"{ACCENTS[rng.integers(len(ACCENTS))]}+{VARIANTS[variant]}",
            pitch=rng.uniform(15, 85),
            pitch_range=rng.uniform(25, 75),
            rate=rng.uniform(130, 210),
            formant_scale=np.exp(rng.uniform(-0.16, 0.16)),
        )
        for i, variant in enumerate(order)
    ]


def compose(rng: np.random.Generator) -> str:
    """Composes two random sentences, sometimes with a number."""
    sentences = []
    for _ in range(2):
        words = [part[rng.integers(len(part))] for part in (SUBJECTS, VERBS, OBJECTS, ENDINGS)]
        if rng.random() < 0.3:
            words.append(f"at {rng.integers(2, 12)} {rng.integers(11, 60)}")
        sentences.append(" ".join(words) + ".")
    return " ".join(sentences)


def speak(espeak: "Espeak", speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Speaks a new text as this speaker: float32 [N] at 16 kHz, with slightly varied rate and pitch."""
    scale = speaker.formant_scale
    samples = espeak(
        compose(rng),
        voice=speaker.voice,
        # The resampling below scales pitch and tempo with the formants; the tempo is made up for here.
        rate=speaker.rate * rng.uniform(0.94, 1.06) / scale,
        pitch=speaker.pitch + rng.uniform(-4, 4),
        pitch_range=speaker.pitch_range + rng.uniform(-8, 8),
    )
    return soxr.resample(samples, espeak.sample_rate * scale, audio.SAMPLE_RATE)


def record(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sends speech through a random channel: equaliser, half the time a room, noise at 10-25 dB SNR, level."""
    decibels = np.interp(np.linspace(0, 1, 65), np.linspace(0, 1, 6), rng.uniform(-8, 8, 6))
    waveform = scipy.signal.fftconvolve(
        waveform, scipy.signal.firwin2(129, np.linspace(0, 1, 65), 10 ** (decibels / 20))
    )
    if rng.random() < 0.5:
        waveform = augment.convolve_rir(waveform, augment.synthetic_rir(rng.uniform(0.15, 0.5), rng))
    noise = augment.coloured_noise(len(waveform), rng.uniform(0, 1.5), rng)
    waveform = augment.mix(waveform, noise, rng.uniform(10, 25))
    return (waveform / np.abs(waveform).max() * rng.uniform(0.2, 0.9)).astype(np.float32)


class Espeak:
    """espeak-ng in this process: a context manager, called with a text and the speaker's traits."""

    _RETRIEVAL, _DONT_EXIT, _UTF8 = 1, 0x8000, 1
    _RATE, _PITCH, _RANGE = 1, 3, 4

    def __enter__(self):
        try:
            import espeakng_loader
        except ImportError as error:
            raise UserError("the demo speaks with espeak-ng: pip install espeakng-loader") from error
        # espeak-ng cuts long paths of its data short, so it gets a short one.
        self._folder = tempfile.TemporaryDirectory(prefix="espeak")
        data = Path(self._folder.name) / "espeak-ng-data"
        data.symlink_to(espeakng_loader.get_data_path())
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sample_rate = self._library.espeak_Initialize(self._RETRIEVAL, 0, bytes(data), self._DONT_EXIT)
        if self.sample_rate <= 0:
            raise UserError(f"espeak-ng cannot read its voices in {espeakng_loader.get_data_path()}: reinstall it")
        self._blocks: list[np.ndarray] = []
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._receive)  # kept, or ctypes frees it
        self._library.espeak_SetSynthCallback(self._callback)
        return self

    def __exit__(self, *_):
        self._library.espeak_Terminate()
        self._folder.cleanup()

    def _receive(self, samples, count, _events) -> int:
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def __call__(self, text: str, voice: str, rate: float, pitch: float, pitch_range: float) -> np.ndarray:
        """Speech, float32 [N] at `sample_rate`; rate in words a minute, pitch and range from 0 to 99."""
        self._blocks.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise UserError(f"espeak-ng has no voice {voice!r}: another version of espeakng-loader may have it")
        for parameter, value in ((self._RATE, rate), (self._PITCH, pitch), (self._RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, int(np.clip(value, 0, 450)), 0)
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, self._UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._blocks).astype(np.float32) / 32768
