#!/usr/bin/env bash
# Prepares a corpus under SLURM: every task of the array writes its own shards, the last command validates them all.
#
#   job=$(sbatch --parsable --array=0-15 launch/slurm_prepare.sh --input=VOX2/aac --output=SHARDS \
#       --noise=MUSAN --rirs=RIRS_NOISES)
#   sbatch --dependency=afterok:$job launch/slurm_prepare.sh --finish --input=VOX2/aac --output=SHARDS \
#       --noise=MUSAN --rirs=RIRS_NOISES
#
# Set: cores and time. No GPU is needed. A task that was killed goes on where it was when it is started again.
#SBATCH --job-name=sdpn-prepare
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --output=%x-%A-%a.log
#SBATCH --requeue
set -eu
activate=${VENV:-.venv}/bin/activate
if [ ! -f "$activate" ]; then
    echo "error: no virtual environment at ${VENV:-.venv}: make one (README.md) or set VENV" >&2
    exit 2
fi
source "$activate"
sdpn prepare "$@"
