"""A recording's file -> its samples, block by block, by libsndfile and FFmpeg: each knows what the other does not.

No decoder is given a name or an address: both read an open file of a kind that `containers` knows, and nothing else.
"""

import io
import itertools
from collections.abc import Iterator
from typing import BinaryIO

import av
import av.error
import numpy as np
import soundfile
from av.container import InputContainer
from jaxtyping import Float32

from sdpn_jax.data import containers
from sdpn_jax.data.containers import AudioError, Kind

RATES = 4_000, 384_000  # Hz, least and greatest
MOST_CHANNELS, MOST_PLANES = 64, 8  # beyond 8 planes PyAV reads outside of a frame's memory
MP3_FRAME = 1152  # samples
BLOCK = 2**20  # samples of all channels decoded at once: 4 MiB
# Decoders that FFmpeg may open, also to look into a file: none of pictures, none that nobody records speech with.
CODECS = frozenset(
    "aac aac_latm ac3 adpcm_g722 adpcm_g726 adpcm_g726le adpcm_ima_qt adpcm_ima_wav adpcm_ms adpcm_yamaha alac "
    "amrnb amrwb eac3 flac g722 g726 g726le gsm gsm_ms libopencore_amrnb libopus libspeex libvorbis mp1 mp1float "
    "mp2 mp2float mp3 mp3float opus pcm_alaw pcm_f32be pcm_f32le pcm_f64be pcm_f64le pcm_mulaw pcm_s16be "
    "pcm_s16be_planar pcm_s16le pcm_s16le_planar pcm_s24be pcm_s24le pcm_s24le_planar pcm_s32be pcm_s32le "
    "pcm_s32le_planar pcm_s8 pcm_u8 shorten speex truespeech vorbis wavpack wmalossless wmapro wmav1 wmav2 "
    "wmavoice".split()
)
OPTIONS = {"codec_whitelist": ",".join(sorted(CODECS)), "protocol_whitelist": "none", "max_streams": "100"}
Blocks = Iterator[tuple[int, Float32[np.ndarray, "n channels"]]]  # each with its rate in Hz


def blocks_of(file: BinaryIO, most_seconds: float, start: float = 0.0, end: float | None = None) -> Blocks:
    """Yields (rate in Hz, samples [n, channels], float32) of an open file, in order, from `start` to `end` in seconds.

    Raises AudioError for a file of no known kind, with a part missing by its own account, of more than `most_seconds`
    or of rates and channels that no recording has, and for what neither decoder understands.
    """
    size = file.seek(0, io.SEEK_END)
    kind = containers.kind_of(file)
    if lack := containers.missing(file, kind, size):
        raise AudioError(lack)
    links = containers.links_of(containers.mended(file, kind, size), kind, size)
    if len(links) > 1:
        blocks = _stretch(itertools.chain.from_iterable(_link(link, kind, 0.0, None) for link in links), start, end)
    else:
        blocks = _link(links[0], kind, start, end)
    decoded = 0
    for rate, block in blocks:
        decoded += len(block)
        if decoded > most_seconds * rate:
            raise AudioError(f"longer than {most_seconds:,g} s (see --max_seconds)")
        yield rate, block
    claimed = 0 if start or end else containers.claimed_samples(file, kind)
    if decoded < claimed - (2 * MP3_FRAME if kind.name == "MP3" else 0):  # of which its encoder pads with silence
        raise AudioError(f"truncated: {decoded:,} of {claimed:,} samples")


def _link(file: BinaryIO, kind: Kind, start: float, end: float | None) -> Blocks:
    """The blocks of one decoder or, if it does not understand the file at all, of the other one."""
    refused = None
    for decoder in (_by_sndfile, _by_ffmpeg) if kind.sndfile_first else (_by_ffmpeg, _by_sndfile):
        begun = False
        try:
            for rate, block in decoder(file, kind, start, end):
                begun = True
                yield rate, block
        except Unreadable as error:
            if begun:
                raise
            refused = refused or error
        else:
            if begun:
                return
    if refused:
        raise refused


def _stretch(blocks: Blocks, start: float, end: float | None) -> Blocks:
    """Of blocks that begin at 0 what lies from `start` to `end` in seconds."""
    at = 0
    for rate, block in blocks:
        first, last = round(start * rate) - at, (2**62 if end is None else round(end * rate)) - at
        at += len(block)
        if last <= 0:
            return
        if first < len(block):
            yield rate, block[max(first, 0) : last]


class Unreadable(AudioError):
    """A decoder does not understand a file; the other one may."""

    def __init__(self, why: object):
        super().__init__(f"unreadable: {' '.join(str(why).split())[:200]}")


def seconds_of(file: BinaryIO) -> float | None:
    """Returns the length of an open file in seconds as its header gives it, without decoding; None if it does not."""
    try:
        kind = containers.kind_of(file)
        if kind.sndfile_first:
            with _sndfile(containers.mended(file, kind, file.seek(0, io.SEEK_END))) as sound:
                return sound.frames / sound.samplerate if 0 < sound.frames < 2**62 else None
        with _ffmpeg(file, kind) as container:
            return container.duration / av.time_base if container.duration else None
    except AudioError:
        return None


def _check(rate: int, channels: int, most_channels: int = MOST_CHANNELS) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"{rate:,} samples a second; recordings have {RATES[0]:,} to {RATES[1]:,}")
    if not 1 <= channels <= most_channels:
        raise AudioError(f"unreadable: {channels:,} channels, at most {most_channels} are read")


def _sndfile(file: BinaryIO) -> soundfile.SoundFile:
    file.seek(0)
    try:
        # By its descriptor where it has one: libsndfile then reads without asking Python for every 8 KiB.
        source = file.fileno() if isinstance(file, io.FileIO) else file
        return soundfile.SoundFile(source, closefd=False)
    except soundfile.LibsndfileError as error:
        raise Unreadable(error.error_string) from error
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise Unreadable(type(error).__name__) from error


def _by_sndfile(file: BinaryIO, kind: Kind, start: float, end: float | None) -> Blocks:
    with _sndfile(file) as sound:
        rate, channels = sound.samplerate, sound.channels
        _check(rate, channels)
        # The header of MP3 in a WAV counts what a decoder leaves out.
        lost = 2 * MP3_FRAME if sound.subtype == "MPEG_LAYER_III" else 0
        frames = sound.frames if 0 < sound.frames < 2**62 else 0
        first = round(start * rate)
        last = frames if end is None else min(round(end * rate), frames or 2**62)
        try:
            if first:
                sound.seek(min(first, frames))
            decoded = first
            while block_size := min(BLOCK // channels, (last or 2**62) - decoded):
                block = sound.read(block_size, dtype="float32", always_2d=True)
                if not len(block):
                    break
                decoded += len(block)
                yield rate, block
        except (soundfile.LibsndfileError, RuntimeError, MemoryError) as error:
            # Not Unreadable: FFmpeg would conceal what is damaged.
            raise AudioError(f"unreadable: {' '.join(str(error).split())[:200]}") from error
    if decoded < last - lost:
        raise AudioError(f"truncated: {decoded:,} of {last:,} samples")


def _ffmpeg(file: BinaryIO, kind: Kind) -> InputContainer:
    file.seek(0)
    try:
        return av.open(file, "r", format=kind.demuxer, options=OPTIONS)
    except av.error.FFmpegError as error:
        raise Unreadable(error.strerror) from error
    except (AttributeError, LookupError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise Unreadable(type(error).__name__) from error


def _by_ffmpeg(file: BinaryIO, kind: Kind, start: float, end: float | None) -> Blocks:
    return _stretch(_joined(_frames(file, kind)), start, end)


def _joined(frames: Blocks) -> Blocks:
    """Blocks of about BLOCK samples from FFmpeg's frames, which have a thousand."""
    waiting: list[np.ndarray] = []
    rate, held = 0, 0
    for rate, frame in frames:
        waiting.append(frame)
        held += frame.size
        if held >= BLOCK:
            yield rate, np.concatenate(waiting)
            waiting, held = [], 0
    if waiting:
        yield rate, np.concatenate(waiting)


def _frames(file: BinaryIO, kind: Kind) -> Blocks:
    with _ffmpeg(file, kind) as container:
        try:
            if not container.streams.audio:
                raise AudioError("no audio in it")
            stream = container.streams.audio[0]
            if stream.codec_context.name not in CODECS:
                raise AudioError(f"unreadable: the codec {stream.codec_context.name} is not among those that are read")
            form = None
            to_float = av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                this = frame.sample_rate, frame.layout.nb_channels
                if form is None:
                    _check(*this, MOST_PLANES)
                    form = this
                elif this != form:
                    raise AudioError("unreadable: rate or channels change within the file")
                for block in [frame] if frame.format.name == "fltp" else to_float.resample(frame):
                    yield this[0], block.to_ndarray().T
        except av.error.FFmpegError as error:
            raise Unreadable(error.strerror) from error
        except (AttributeError, LookupError) as error:  # PyAV's stream of an unknown codec lacks attributes
            raise Unreadable("unknown codec") from error
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            raise Unreadable(type(error).__name__) from error
