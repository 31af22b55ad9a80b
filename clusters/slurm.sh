#!/usr/bin/env bash
# One sweep on a Slurm allocation: sbatch clusters/slurm.sh nusax [options of a sweep], from the root of the checkout,
# with its .venv and the results on a file system that all nodes see. One `srun` starts Ray on all nodes, runs the sweep
# on the first, and ends Ray with it. Submitted again, the sweep goes on where it was.
#SBATCH --job-name=deftx-sweeps
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --time=24:00:00
set -euo pipefail
[ $# -gt 0 ] || { echo "error: which space? sbatch clusters/slurm.sh nusax" >&2; exit 2; }

export PATH=${VENV:-$PWD/.venv}/bin:$PATH
export DEFTX_STORAGE=${DEFTX_STORAGE:-$PWD/results}
export DEFTX_ADDRESS=auto
# nodes are shared with others of the site, who must not be let in; by the environment, which srun hands on
RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE RAY_AUTH_TOKEN
# importing Ray from a busy shared file system takes longer than the 30 s that it waits
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
# symmetric-run ends with 0 where Ray could not be started: the sweep removes this when it begins
unstarted=$(mktemp "$PWD/.ray-not-started-XXXXXX")
code=0
srun --export=ALL ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_NNODES" \
    --num-cpus "${SLURM_CPUS_PER_TASK:-1}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    -- bash -c 'rm -f "$0"; exec python -m orchestrator.sweep "$@"' "$unstarted" "$@" || code=$?
if [ -e "$unstarted" ]; then
    rm -f "$unstarted"
    echo "error: Ray did not start on $head:$port; what it says is above" >&2
    exit 1
fi
exit $code
