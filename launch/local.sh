#!/usr/bin/env bash
# Several processes of one run on this machine, joined over loopback: a rehearsal of a cluster, or one process a GPU.
#
#   PROCESSES=2 DEVICES=4 launch/local.sh --config=librispeech --config.data_dir=SHARDS --workdir=RUN
#
# Set: PROCESSES; without GPUs also DEVICES, into how many each process divides the CPU. All arguments go to every
# process. The GPUs of CUDA_VISIBLE_DEVICES, where it is set, are handed out in its order.
# Ctrl-C and SIGTERM reach all processes: they save at the same step and stop; the same command resumes.
set -u
processes=${PROCESSES:-2}
port=${PORT:-$((20000 + RANDOM % 20000))}

gpus=()
chosen=${CUDA_VISIBLE_DEVICES-$(seq -s, 0 $((processes - 1)))} # empty and -1: the user hides all GPUs
if [ -n "$chosen" ] && [ "$chosen" != -1 ] && [ "${JAX_PLATFORMS:-}" != cpu ] && command -v nvidia-smi > /dev/null; then
    IFS=, read -ra gpus <<< "$chosen"
    if [ "${#gpus[@]}" -lt "$processes" ]; then
        echo "error: PROCESSES=$processes, but CUDA_VISIBLE_DEVICES=$chosen: each needs a GPU of its own" >&2
        exit 2
    fi
fi

pids=()
trap 'kill -TERM "${pids[@]}"' TERM INT
for ((i = 0; i < processes; i++)); do
    if [ "${#gpus[@]}" -gt 0 ]; then
        setting=CUDA_VISIBLE_DEVICES=${gpus[i]}
    else
        setting="XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=${DEVICES:-1}"
    fi
    env "$setting" sdpn train "$@" \
        --coordinator="localhost:$port" --process_count="$processes" --process_index="$i" &
    pids+=($!)
done

code=0
for pid in "${pids[@]}"; do
    wait "$pid"
    status=$?
    while kill -0 "$pid" 2> /dev/null; do wait "$pid"; status=$?; done # a signal ends a wait before its process
    [ "$status" -gt "$code" ] && code=$status
done
exit "$code"
