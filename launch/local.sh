#!/usr/bin/env bash
# Several processes of one run on this machine, joined over loopback: a rehearsal of a cluster, or one process a GPU.
#
#   PROCESSES=2 DEVICES=4 launch/local.sh --config=librispeech --config.data_dir=SHARDS --workdir=RUN
#
# Set: PROCESSES; without GPUs also DEVICES, into how many each process divides the CPU. All arguments go to every process.
# Ctrl-C and SIGTERM reach all of them: they save at the same step and stop; the same command resumes.
set -u
processes=${PROCESSES:-2}
port=${PORT:-$((20000 + RANDOM % 20000))}

pids=()
trap 'kill -TERM "${pids[@]}"' TERM INT
for ((i = 0; i < processes; i++)); do
    environment=()
    if [ "${JAX_PLATFORMS:-}" != cpu ] && command -v nvidia-smi > /dev/null; then
        if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then # one GPU a process, of those that the user chose
            IFS=, read -ra chosen <<< "$CUDA_VISIBLE_DEVICES"
            if [ "$i" -ge "${#chosen[@]}" ]; then
                echo "error: PROCESSES=$processes, but CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES" >&2
                [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}"
                exit 2
            fi
            environment+=("CUDA_VISIBLE_DEVICES=${chosen[i]}")
        else
            environment+=("CUDA_VISIBLE_DEVICES=$i")
        fi
    else
        environment+=("XLA_FLAGS=${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}")
    fi
    env "${environment[@]}" sdpn train "$@" \
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
