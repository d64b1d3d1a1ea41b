"""Trains SDPN, as `sdpn train` does: python -m sdpn_jax.main --config=configs/vox2.py [--config.FIELD=VALUE]."""

import sys

from sdpn_jax.cli.program import leave, main, use_huge_pages

if __name__ == "__main__":
    use_huge_pages()
    leave(main(["train", *sys.argv[1:]]))
