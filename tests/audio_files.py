"""Recordings of more than thirty kinds, written by libsndfile and FFmpeg."""

import av
import numpy as np
import soundfile


def encoded(path, samples, rate, codec, container, layout="mono"):
    """Writes samples [N, channels] by an encoder of FFmpeg."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        if codec == "wmav2":
            stream.bit_rate = 64000
        form = stream.codec_context.codec.audio_formats[0].name
        resampler = av.AudioResampler(format=form, layout=layout, rate=rate, frame_size=stream.codec_context.frame_size)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T, np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))


def written(path, samples, rate, kind):
    """Writes samples [N] as one of KINDS."""
    form = KINDS[kind]
    if isinstance(form[0], str) and len(form) == 2:
        soundfile.write(path, samples, rate, format=form[0], subtype=form[1])
    else:
        encoded(path, samples[:, None], rate, *form[1:])


KINDS = {
    "wav": ("WAV", "PCM_16"), "wav24": ("WAV", "PCM_24"), "wav_gsm": ("WAV", "GSM610"), "wav_ulaw": ("WAV", "ULAW"),
    "wavex": ("WAVEX", "PCM_16"), "rf64": ("RF64", "PCM_16"), "w64": ("W64", "PCM_16"), "aiff": ("AIFF", "PCM_16"),
    "aifc": ("AIFF", "ULAW"), "caf": ("CAF", "PCM_16"), "caf_alac": ("CAF", "ALAC_16"), "au": ("AU", "PCM_16"),
    "sph": ("NIST", "PCM_16"), "voc": ("VOC", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"),
    "m4a": (None, "aac", "mp4"), "aac": (None, "aac", "adts"), "webm": (None, "libopus", "webm"),
    "mkv": (None, "pcm_s16le", "matroska"), "wma": (None, "wmav2", "asf"), "avi": (None, "libmp3lame", "avi"),
    "mov": (None, "alac", "mov"), "ts": (None, "aac", "mpegts"), "mp2": (None, "mp2", "mp2"),
    "flv": (None, "aac", "flv"), "ac3": (None, "ac3", "ac3"), "wv": (None, "wavpack", "wv"),
    "wav_mp3": (None, "libmp3lame", "wav"),
}  # fmt: skip
