#!/usr/bin/env bash
# What every node of a cluster runs first: ~/venv for the project and its packages, and ~/deftx.sh, which shells and
# `ray start` read. Run again, it changes nothing but what has changed.
#
#   bash clusters/setup.sh STORAGE     STORAGE: what all nodes reach: s3://bucket/deft-x, gs://..., or a shared folder
set -euo pipefail
storage=${1:?the storage is missing: bash clusters/setup.sh s3://your-bucket/deft-x}
case $storage in *REPLACE-*)
    echo "error: the storage is still $storage: put your bucket's name into the cluster file" >&2
    exit 2
    ;;
esac

# Ray wants the same minor version of Python on all nodes: head and workers have one image, and take the same one of it
for python in ${PYTHON:-python3 python3.12 python3.11}; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break || python=
done
if [ -z "$python" ]; then
    echo "error: no Python 3.11 or newer on $(hostname): choose an image that has one, such as Ubuntu 24.04" >&2
    exit 2
fi
if [ ! -x ~/venv/bin/pip ]; then # what venv makes last
    for _ in 1 2 3 4 5 6; do # a machine that has just booted may be installing updates
        "$python" -c 'import ensurepip' 2>/dev/null && break
        (sudo apt-get update -q && sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$(basename "$python")-venv") || sleep 20
    done
    "$python" -m venv ~/venv
fi

{
    printf 'export DEFTX_STORAGE=%q\n' "$storage"
    echo 'export DEFTX_ADDRESS=auto                          # trials go to the cluster, not to the head alone'
    echo 'export MLFLOW_TRACKING_URI=http://127.0.0.1:5001   # on the head, where sweeps are driven'
    echo 'export RAY_AUTH_MODE=token                         # by ~/.ray/auth_token, the same on all nodes'
    echo 'export RAY_JOB_STOP_WAIT_TIME_S=60                   # trainings keep a checkpoint when a job is stopped'
    echo 'case :$PATH: in *:$HOME/venv/bin:*) ;; *) export PATH=$HOME/venv/bin:$PATH ;; esac'
} >~/deftx.sh
# Ray's commands and `ray attach` read ~/.bashrc, other login shells ~/.profile
for file in ~/.bashrc ~/.profile; do
    grep -qs '^\. ~/deftx.sh$' "$file" || echo '. ~/deftx.sh' >>"$file"
done
