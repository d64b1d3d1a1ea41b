"""Trains SDPN: self-supervised speaker verification.

python -m sdpn_jax.main --config=configs/librispeech.py --config.data_dir=shards [--workdir=DIR] [--config.FIELD=VALUE]
"""

import os
import sys

from absl import flags
from ml_collections import config_flags

from sdpn_jax import errors
from sdpn_jax.errors import UserError

HUGE_PAGES = "glibc.malloc.hugetlb=1"


def use_huge_pages() -> None:
    """Starts this process again with huge pages for large arrays, which glibc decides only at its start.

    On CPUs a step spends a third of its time on page faults without them (1.23 s against 0.82 s for the encoder).
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        environment = {**os.environ, "GLIBC_TUNABLES": HUGE_PAGES}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def main(_) -> None:
    from sdpn_jax import demo
    from sdpn_jax.training import hosts, loop  # JAX starts here, after the flags have been read

    if FLAGS.coordinator or FLAGS.distributed or hosts.several_expected(os.environ):
        hosts.join(FLAGS.coordinator, FLAGS.process_count, FLAGS.process_index)
    config = FLAGS.config
    try:
        workdir = FLAGS.workdir or config.workdir
    except OSError as error:  # ml_collections keeps the failure to read the file until its first use
        raise UserError(str(error).strip().splitlines()[-1].strip() + ": --config names a Python file") from error
    if config.demo:
        demo.run(config, workdir)
        return
    try:
        loop.train_and_evaluate(config, workdir)
    except Exception as error:
        if hosts.alone():
            raise
        hosts.abandon(error)


if __name__ == "__main__":
    use_huge_pages()
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config(), such as configs/librispeech.py; --config.FIELD=VALUE overrides."
    )
    flags.DEFINE_string("workdir", None, "Where the run goes; default: the config's workdir. A run there is resumed.")
    flags.DEFINE_bool("distributed", False, "Join other processes as SLURM, Kubernetes or TPU metadata say.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where several processes make one run.")
    flags.DEFINE_integer("process_count", None, "With --coordinator: how many processes there are.")
    flags.DEFINE_integer("process_index", None, "With --coordinator: this one's number, from 0.")
    flags.mark_flag_as_required("config")
    errors.run(main)
