"""Trains SDPN, as `sdpn train` does: python -m sdpn_jax.main --config=configs/vox2.py [--config.FIELD=VALUE]."""

import sys

from sdpn_jax.cli.program import leave, main

if __name__ == "__main__":
    leave(main(["train", *sys.argv[1:]]))
