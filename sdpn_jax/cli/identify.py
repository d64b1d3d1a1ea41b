"""Who of a gallery's speakers a recording sounds like.

    python -m sdpn_jax.cli.identify x.wav [y.wav ...] --gallery=team.npz --model=MODEL [--threshold=0.4] [--json]

Prints for each recording the most alike speakers, and the decision: the first of them if the score reaches the
threshold, otherwise nobody. Exit code 0: all recordings are somebody's, 1: some are nobody's, 2: something was wrong.
"""

import json
import sys

from absl import flags

from sdpn_jax import errors
from sdpn_jax.errors import UserError
from sdpn_jax.speaker import gallery
from sdpn_jax.speaker.encoder import SpeakerEncoder


def main(argv: list[str]) -> None:
    paths = argv[1:]
    if not paths:
        raise UserError("no recordings are given: python -m sdpn_jax.cli.identify x.wav --gallery=G.npz --model=M")
    encoder = SpeakerEncoder.load(FLAGS.model)
    speakers = gallery.read(FLAGS.gallery, encoder.fingerprint())
    threshold = encoder.threshold if FLAGS.threshold is None else FLAGS.threshold
    if threshold is None:
        raise UserError("this model brings no threshold: give --threshold")
    results = []
    for path, embedding in zip(paths, encoder.embed(paths), strict=True):
        ranking = speakers.scores(embedding)
        name = ranking[0][0] if ranking[0][1] >= threshold else None
        ranking = [{"name": other, "score": score} for other, score in ranking[: FLAGS.show]]
        results.append({"recording": path, "speaker": name, "threshold": threshold, "ranking": ranking})
    if FLAGS.json:
        print(json.dumps(results))
    for result in results if not FLAGS.json else ():
        near = ", ".join(f"{row['name']} {row['score']:.4f}" for row in result["ranking"])
        print(f"{result['recording']}: {result['speaker'] or 'nobody enrolled'} ({near}; threshold {threshold:.4f})")
    sys.exit(0 if all(result["speaker"] for result in results) else 1)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("model", None, "Model folder, training workdir, or PyTorch checkpoint.", required=True)
    flags.DEFINE_string("gallery", None, "The gallery, as sdpn_jax.enrol makes it.", required=True)
    flags.DEFINE_float("threshold", None, "The cosine from which it is the speaker; default: the model's.")
    flags.DEFINE_integer("show", 3, "How many of the most alike speakers are shown.", 1)
    flags.DEFINE_bool("json", False, "Print one JSON array.")
    errors.run(main, takes_files=True)
