#!/usr/bin/env bash
# One run on a TPU slice of Google Cloud: the same command on all of its hosts, detached from this shell.
#
#   TPU=my-slice ZONE=us-central2-b REPOSITORY=https://... launch/tpu_pod.sh --config=vox2 \
#       --config.data_dir=gs://BUCKET/shards --workdir=gs://BUCKET/runs/vox2
#
# Set: TPU and ZONE, REPOSITORY (where the hosts clone this project from). With TYPE (v5litepod-32) and RUNTIME
# (v2-alpha-tpuv5-lite) a slice that is not there is asked for as a queued resource, SPOT=1 as a spot slice, and again
# whenever it is taken away: the run resumes. Shards and workdir are seen by all hosts: buckets, or a mounted one.
# This script may end or be ended, the run goes on; started again with the same words it watches the same run.
# Ask first what will happen: sdpn launch-check --config=... --topology=v5e:4x8
set -eu
: "${TPU:?name of the slice}" "${ZONE:?its zone}" "${REPOSITORY:?git address of this project}"
poll=${POLL_SECONDS:-30}

on_hosts() { # WORKERS COMMAND
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}

state_of_slice() { # READY, PREEMPTED, ...; NONE without a slice
    gcloud compute tpus tpu-vm describe "$TPU" --zone="$ZONE" --format='value(state)' 2> /dev/null || echo NONE
}

delete_slice() {
    gcloud compute tpus queued-resources delete "$TPU" --zone="$ZONE" --force --quiet || true
}

ask_for_slice() {
    gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" --zone="$ZONE" --accelerator-type="$TYPE" \
        --runtime-version="${RUNTIME:?with TYPE: the runtime of the slice}" ${SPOT:+--spot} --quiet
}

wait_for_slice() { # leaves a slice that is READY, or ends the script where nobody may ask for one
    while state=$(state_of_slice); [ "$state" != READY ]; do
        case $state in
            NONE | PREEMPTED | TERMINATED | FAILED)
                if [ -z "${TYPE:-}" ]; then
                    echo "error: the slice $TPU is $state: create it, or set TYPE and RUNTIME to have it asked for" >&2
                    exit 2
                fi
                queued=$(gcloud compute tpus queued-resources describe "$TPU" --zone="$ZONE" \
                    --format='value(state.state)' 2> /dev/null || echo NONE)
                case $queued in
                    NONE) ask_for_slice ;;
                    ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES | CREATING) ;;
                    *) delete_slice; ask_for_slice ;; # SUSPENDED, FAILED, or ACTIVE with a slice that was taken away
                esac ;;
        esac
        sleep "$poll"
    done
}

# A clone that is there is brought up to date. Candidates for Python are run, not looked for: python3 of many TPU images
# is older than this project needs, an environment may have been made with it, and under pyenv not every name runs.
prepare_hosts() {
    on_hosts all "set -e
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
    .venv/bin/pip install --quiet -e '.[tpu,gcs]'"
}

# JAX_COMPILATION_CACHE_DIR: a restarted host does not compile again. --distributed: the hosts find each other through the
# metadata server. setsid and nohup: the run outlives the connection. Its exit code waits in run.code.
start_run() {
    on_hosts all "cd sdpn_jax
    if [ ! -f run.code ] && [ -f run.pid ] && kill -0 \$(cat run.pid) 2> /dev/null; then exit 0; fi
    rm -f run.code
    JAX_COMPILATION_CACHE_DIR=\$HOME/.cache/jax nohup setsid bash -c '.venv/bin/sdpn train --distributed \"\$@\"; \
        echo \$? > run.code' run $(printf '%q ' "$@") > run.log 2>&1 < /dev/null &
    echo \$! > run.pid"
}

while true; do
    wait_for_slice
    prepare_hosts
    start_run "$@"
    while [ "$(state_of_slice)" = READY ]; do
        code=$(on_hosts 0 "cat sdpn_jax/run.code 2> /dev/null || true" || true)
        if [ -n "$code" ]; then
            on_hosts 0 "tail -n 20 sdpn_jax/run.log" || true
            [ "$code" -ne 143 ] && exit "$code"
            break # stopped by SIGTERM after a checkpoint, as before maintenance: begin again, it resumes
        fi
        sleep "$poll"
    done
    echo "the slice $TPU or the run on it was stopped; beginning again" >&2
    sleep "$poll"
done
