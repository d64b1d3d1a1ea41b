"""Embeddings of recordings, as NumPy arrays.

    python -m sdpn_jax.cli.embed a.wav b.wav --model=MODEL -o embeddings.npz
    python -m sdpn_jax.cli.embed FOLDER --model=MODEL -o embeddings.npz

Writes `ids`, `embeddings` float32 [N, D] and `seconds` float32 [N]. Recordings that cannot be used are skipped, and
listed beside the output. MODEL is a model folder, a training workdir, or a checkpoint of the released PyTorch code. For
a large corpus, several machines or averaged crops: python -m sdpn_jax.speaker.corpus.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from sdpn_jax import errors
from sdpn_jax.data import audio, features
from sdpn_jax.errors import UserError
from sdpn_jax.speaker.encoder import SpeakerEncoder

TOGETHER = 64  # recordings embedded at once


def recordings_of(arguments: list[str]) -> list[tuple[str, Path]]:
    """(id, path) of the files, and of the recordings below the folders, that are named on the command line."""
    found = []
    for argument in arguments:
        if Path(argument).is_dir():
            found += audio.find_utterances(argument)
        else:
            found.append((argument, Path(argument)))
    ids = [name for name, _ in found]
    twice = next((name for name in ids if ids.count(name) > 1), None) if len(set(ids)) < len(ids) else None
    if twice:
        raise UserError(f"two recordings have the id {twice!r}: give one folder that holds them all")
    return found


def embed(encoder: SpeakerEncoder, recordings: list[tuple[str, Path]]) -> tuple[dict[str, np.ndarray], list]:
    """({"ids", "embeddings", "seconds"}, [(path, reason)] of those that cannot be used)."""
    ids, embeddings, seconds, skipped, waiting = [], [], [], [], []
    for place, (name, path) in enumerate(tqdm(recordings, unit="recording", disable=len(recordings) < 10)):
        try:
            waveform = audio.read_audio(path)
        except audio.AudioError as error:
            skipped.append((str(path), str(error)))
        else:
            ids.append(name)
            seconds.append(len(waveform) / audio.SAMPLE_RATE)
            waiting.append(features.log_mel(waveform))
        if waiting and (len(waiting) == TOGETHER or place == len(recordings) - 1):
            embeddings.append(encoder.embed_log_mels(waiting))
            waiting = []
    arrays = {"ids": np.asarray(ids), "seconds": np.asarray(seconds, np.float32)}
    return arrays | {"embeddings": np.concatenate(embeddings) if embeddings else np.zeros((0, 0))}, skipped


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise UserError(
            "no recordings are given: python -m sdpn_jax.cli.embed FILES or FOLDER --model=MODEL -o OUT.npz"
        )
    recordings = recordings_of(argv[1:])
    arrays, skipped = embed(SpeakerEncoder.load(FLAGS.model), recordings)
    output = Path(FLAGS.output).with_suffix(".npz")
    reasons = "".join(f"{path!r}\t{reason}\n" for path, reason in skipped)
    if not len(arrays["ids"]):
        raise UserError(f"none of {len(recordings)} recordings can be used, first: {reasons.splitlines()[0]}")
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(output, **arrays)
    wrote = {"embeddings": len(arrays["ids"]), "dimension": arrays["embeddings"].shape[1], "output": str(output)}
    if skipped:
        wrote |= {"skipped": len(skipped), "reasons": str(output.with_suffix(".skipped.txt"))}
        output.with_suffix(".skipped.txt").write_text(reasons, errors="surrogateescape")
    if FLAGS.json:
        print(json.dumps(wrote))
        return
    if skipped:
        print(f"{len(skipped)} recordings skipped, listed in {wrote['reasons']}")
    print(f"{wrote['embeddings']} embeddings of {wrote['dimension']} dimensions written to {output}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("model", None, "Model folder, training workdir, or PyTorch checkpoint.", required=True)
    flags.DEFINE_string("output", None, "The .npz file to write.", short_name="o", required=True)
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    errors.run(main, takes_files=True)
