#!/usr/bin/env bash
# One run on a TPU slice of Google Cloud: the same command on all of its hosts.
#
#   TPU=my-slice ZONE=us-central2-b launch/tpu_pod.sh --config=configs/vox2.py \
#       --config.data_dir=gs-mount/shards --workdir=gs-mount/runs/vox2
#
# Set: TPU and ZONE (a slice that exists), REPOSITORY (where its hosts clone this project from). Shards and workdir must
# be seen by all hosts: a mounted bucket (gcsfuse) or a file server. Run it again after a preemption: the run resumes.
# Ask first what will happen: python -m sdpn_jax.launch_check --config=... --topology=v5e:4x8
set -eu
: "${TPU:?name of the slice}" "${ZONE:?its zone}" "${REPOSITORY:?git address of this project}"

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

on_all_hosts "test -d sdpn_jax || git clone $(printf %q "$REPOSITORY") sdpn_jax
    cd sdpn_jax && python3 -m venv .venv && .venv/bin/pip install --quiet -e . 'jax[tpu]'"

# JAX_COMPILATION_CACHE_DIR: a restarted host does not compile again.
# --distributed: the hosts find each other through the metadata server.
on_all_hosts "cd sdpn_jax && JAX_COMPILATION_CACHE_DIR=\$HOME/.cache/jax \
    .venv/bin/python -m sdpn_jax.main --distributed $(printf '%q ' "$@")"
