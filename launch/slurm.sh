#!/usr/bin/env bash
# One run under SLURM, on one GPU node or several: one task a GPU, which find each other through SLURM's variables.
#
#   sbatch --nodes=4 launch/slurm.sh --config=vox2 --config.data_dir=SHARDS --workdir=RUN
#
# Set: the partition and the time below, the number of GPUs of a node (twice), cores a task, and how your cluster makes
# the environment. SHARDS and RUN must lie on a file system that all nodes see.
#SBATCH --job-name=sdpn
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Preempted jobs go back to the queue; a job near its time limit is told so two minutes before, saves and stops.
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -u
activate=${VENV:-.venv}/bin/activate
if [ ! -f "$activate" ]; then
    echo "error: no virtual environment at ${VENV:-.venv}: make one (README.md) or set VENV" >&2
    exit 2
fi
source "$activate"

# The step compiles in a minute or two; a restarted job finds it here.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/jax}
# JAX takes three quarters of a GPU's memory by default; nothing else runs on these.
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92

# A failing task ends the others, which otherwise wait for it until their heartbeat times out.
srun --kill-on-bad-exit=1 sdpn train "$@"
code=$?
if [ "$code" -eq 143 ]; then # stopped by the signal after a checkpoint, not finished: queue again, it resumes
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
