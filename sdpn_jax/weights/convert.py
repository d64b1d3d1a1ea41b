"""Weights from the released PyTorch implementation, and back under its names.

python -m sdpn_jax.weights.convert --input=checkpoint.pth --output=runs/released
python -m sdpn_jax.weights.convert --input=runs/vox2 --output=teacher.safetensors
"""

import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from absl import flags, logging

from sdpn_jax import errors, storage
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import Network
from sdpn_jax.speaker import corpus
from sdpn_jax.training import checkpoint, optim
from sdpn_jax.training.loop import state_parts
from sdpn_jax.training.step import TrainState
from sdpn_jax.weights import sdpn_names


def state_from(student: dict, teacher: dict, prototypes: np.ndarray, step: int) -> TrainState:
    """The state of a run that goes on from these weights at `step`: float32, without momentum or offset yet."""
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (student, teacher, [prototypes]))
    student, teacher, [prototypes] = weights
    # What the optimizer remembers has the same form for all settings.
    optimizer = optim.sgd(lambda _: 0.0, momentum=0.9, weight_decay=0.0, clip_norm=1.0)
    opt_state = optimizer.init({"network": student["params"], "prototypes": prototypes})
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        student=student,
        teacher=teacher,
        prototypes=prototypes,
        offset=jnp.zeros(len(prototypes)),
        opt_state=optax.tree.set(opt_state, count=jnp.asarray(step, jnp.int32)),
    )


def to_workdir(source: str | Path, workdir: str | Path, step: int = 0) -> dict:
    """Makes a training run of a released checkpoint, at `step`, and returns its config.

    The config says only what the weights do, and where they are from: a run that goes on may choose everything else.
    Raises UserError when the checkpoint cannot be used or there is a run already.
    """
    workdir = Path(workdir)
    if (workdir / "config.json").exists() or (workdir / "checkpoints").exists():
        raise UserError(f"{workdir} holds a run already: choose another --output, or delete that one")
    sizes, student, teacher, prototypes = sdpn_names.read_checkpoint(source)
    config = {"converted_from": str(source), "model": sizes, "num_prototypes": len(prototypes)}
    state = state_from(student, teacher, prototypes, step)
    with checkpoint.manager(workdir) as checkpoints:
        checkpoint.save(checkpoints, step, state_parts(state), config)
        checkpoints.wait_until_finished()
    checkpoint.write_config(workdir, config)  # last: a run without it is not whole
    return config


def to_safetensors(workdir: str | Path, output: str | Path, which: str = "teacher", step: int | None = None) -> int:
    """Writes encoder and head of a run's "teacher" or "student" under the released names; returns their step.

    Raises UserError when there is no run or no checkpoint of `step` (default: the newest).
    """
    network, variables, step = corpus.load_encoder(workdir, step, which)
    state = sdpn_names.to_released(jax.device_get(variables), step)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    about = {"format": "pt", "encoder": which, "step": str(step)}
    storage.write_bytes(Path(output), safetensors.numpy.save(state, about))
    logging.info("%s of %s, step %d, channels %s", which, workdir, step, network.channels)
    return step


def main(_) -> None:
    source, output = Path(FLAGS.input), Path(FLAGS.output)
    if FLAGS.step is not None and FLAGS.step < 0:
        raise UserError(f"--step={FLAGS.step} is negative: steps count from 0")
    if source.is_dir():
        if output.suffix != ".safetensors":
            raise UserError(f"--output={output} does not end in .safetensors, the format that weights are written in")
        step = to_safetensors(source, output, FLAGS.encoder, FLAGS.step)
        print(f"the {FLAGS.encoder} of step {step} written to {output}, under the released names")
        return
    if output.suffix == ".safetensors":
        raise UserError(f"--output={output} is for the weights of a run: give the folder that the run shall be in")
    step = FLAGS.step or 0
    config = to_workdir(source, output, step)
    print(
        f"written to {output}: config.json and checkpoints/{step} with student, teacher and prototypes of {source}\n"
        f"embeddings: python -m sdpn_jax.speaker.corpus --workdir={output} --input=RECORDINGS --output=embeddings.npz\n"
        "training goes on: python -m sdpn_jax.main --config=configs/vox2_released.py --config.data_dir=SHARDS "
        f"{size_flags(config)}--workdir={output}"
    )


def size_flags(config: dict) -> str:
    """The flags of sdpn_jax.main, each with a space after it, for sizes that are not those of configs/vox2.py."""
    sizes = {"num_prototypes": 1024} | {f"model.{name}": getattr(Network, name) for name in config["model"]}
    ours = {"num_prototypes": config["num_prototypes"]} | {f"model.{k}": v for k, v in config["model"].items()}
    other = [f"--config.{name}={value}" for name, value in ours.items() if value != sizes[name]]
    return "".join(f"{shlex.quote(flag)} " for flag in other)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("input", None, "Checkpoint of the released training script, or a run's workdir.", required=True)
    flags.DEFINE_string("output", None, "New workdir, or for a workdir's weights a .safetensors file.", required=True)
    flags.DEFINE_enum("encoder", "teacher", ["teacher", "student"], "Whose weights of a workdir are written.")
    flags.DEFINE_integer(
        "step",
        None,
        "Of a workdir: checkpoint to take; default the newest. Of a released one: where training goes on; 0.",
    )
    errors.run(main)
