#!/usr/bin/env bash
# One run on a TPU slice of Google Cloud: the same command on all of its hosts.
#
#   TPU=my-slice ZONE=us-central2-b launch/tpu_pod.sh --config=vox2 \
#       --config.data_dir=gs-mount/shards --workdir=gs-mount/runs/vox2
#
# Set: TPU and ZONE (a slice that exists), REPOSITORY (where its hosts clone this project from). Shards and workdir must
# be seen by all hosts: a mounted bucket (gcsfuse) or a file server. Run it again after a preemption: the run resumes.
# Ask first what will happen: sdpn launch-check --config=... --topology=v5e:4x8
set -eu
: "${TPU:?name of the slice}" "${ZONE:?its zone}" "${REPOSITORY:?git address of this project}"

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

# A clone that is there is brought up to date. Candidates for Python are run, not looked for: python3 of many TPU images
# is older than this project needs, an environment may have been made with it, and under pyenv not every name runs.
on_all_hosts "set -e
    if [ -d sdpn_jax ]; then git -C sdpn_jax pull --quiet --ff-only
    else git clone --quiet $(printf %q "$REPOSITORY") sdpn_jax; fi
    cd sdpn_jax
    new_enough() { \$1 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }
    if ! new_enough .venv/bin/python; then
        for python in python3.13 python3.12 python3.11 none; do new_enough \$python && break; done
        if [ \$python = none ]; then
            echo 'error: Python 3.11 or newer is needed: install it on the hosts (apt install python3.11-venv)' >&2
            exit 2
        fi
        \$python -m venv --clear .venv
    fi
    .venv/bin/pip install --quiet -e '.[tpu]'"

# JAX_COMPILATION_CACHE_DIR: a restarted host does not compile again.
# --distributed: the hosts find each other through the metadata server.
on_all_hosts "cd sdpn_jax && JAX_COMPILATION_CACHE_DIR=\$HOME/.cache/jax \
    .venv/bin/sdpn train --distributed $(printf '%q ' "$@")"
