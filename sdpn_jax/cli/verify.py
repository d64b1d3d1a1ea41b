"""Whether two recordings are of one speaker.

    python -m sdpn_jax.cli.verify a.wav b.wav --model=MODEL [--threshold=0.4] [--json]

Prints score, threshold and decision. Exit code 0: same speaker, 1: different speakers, 2: something was wrong.
MODEL is a model folder, a training workdir, or a checkpoint of the released PyTorch code.
"""

import dataclasses
import json
import sys

from absl import flags

from sdpn_jax import errors
from sdpn_jax.errors import UserError
from sdpn_jax.speaker.encoder import SpeakerEncoder


def main(argv: list[str]) -> None:
    paths = argv[1:]
    if len(paths) != 2:
        raise UserError(f"two recordings are compared, {len(paths)} given: python -m sdpn_jax.cli.verify a.wav b.wav")
    verdict = SpeakerEncoder.load(FLAGS.model).verify(*paths, threshold=FLAGS.threshold)
    if FLAGS.json:
        print(json.dumps({"recordings": paths, **dataclasses.asdict(verdict)}))
    else:
        print(f"score {verdict.score:.4f}, threshold {verdict.threshold:.4f}: "
              f"{'same speaker' if verdict.same_speaker else 'different speakers'}")  # fmt: skip
    sys.exit(0 if verdict.same_speaker else 1)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("model", None, "Model folder, training workdir, or PyTorch checkpoint.", required=True)
    flags.DEFINE_float("threshold", None, "The cosine from which speakers count as the same; default: the model's.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    errors.run(main, takes_files=True)
