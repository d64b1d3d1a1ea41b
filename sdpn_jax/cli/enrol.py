"""Enrols a named speaker in a gallery, with one or more recordings.

    python -m sdpn_jax.cli.enrol ann1.wav ann2.wav --name=Ann --gallery=team.npz --model=MODEL

The gallery is made where there is none. Later recordings of the same name are added to the earlier ones.
"""

import json
from pathlib import Path

from absl import flags

from sdpn_jax import errors
from sdpn_jax.errors import UserError
from sdpn_jax.speaker import gallery
from sdpn_jax.speaker.encoder import SpeakerEncoder


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise UserError("no recordings: python -m sdpn_jax.cli.enrol a.wav --name=NAME --gallery=G.npz --model=M")
    encoder = SpeakerEncoder.load(FLAGS.model)
    path = Path(FLAGS.gallery)
    speakers = gallery.read(path, encoder.fingerprint()) if path.exists() else gallery.new(encoder.fingerprint())
    speakers.enrol(FLAGS.name, encoder.embed(argv[1:]))
    gallery.write(path, speakers)
    count = int(speakers.counts[speakers.names.index(FLAGS.name)])
    if FLAGS.json:
        print(json.dumps({"name": FLAGS.name, "recordings": count, "speakers": speakers.names, "gallery": str(path)}))
    else:
        print(f"wrote {path}: {len(speakers.names)} speakers in all, {count} recordings of {FLAGS.name}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("model", None, "Model folder, training workdir, or PyTorch checkpoint.", required=True)
    flags.DEFINE_string("gallery", None, "The gallery, an .npz file.", required=True)
    flags.DEFINE_string("name", None, "The speaker.", required=True)
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    errors.run(main, takes_files=True)
