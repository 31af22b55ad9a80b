#!/usr/bin/env bash
# An MLflow server for the head, on loopback, at 5001, since a Mac that browses it has 5000 taken: started again when it
# dies, ended when Ray's head has ended. Returns at once; run again, it takes over from the one before. Artifacts go to
# $DEFTX_STORAGE/mlflow; the database is ~/mlflow.db, and a head that is gone takes it along: `python -m
# orchestrator.tracking STORAGE` makes it anew from the storage.
set -euo pipefail
. ~/deftx.sh

head_lives() { pgrep -u "$(id -u)" gcs_server >/dev/null; }

serve() {
    export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
    server=
    trap 'end_server; exit' TERM
    while head_lives; do
        # a session of its own, so that all of its processes can be ended
        setsid mlflow server --host 127.0.0.1 --port 5001 --workers 1 \
            --backend-store-uri "sqlite:///$HOME/mlflow.db" --artifacts-destination "$DEFTX_STORAGE/mlflow" &
        server=$!
        while kill -0 "$server" 2>/dev/null && head_lives; do sleep 2 & wait $!; done
        end_server
    done
}

end_server() {
    if [ -n "$server" ]; then
        kill -TERM -- "-$server" 2>/dev/null || true
        wait "$server" || true
    fi
}

if [ "${1:-}" = serve ]; then
    serve
    exit
fi
if before=$(cat ~/.mlflow.pid 2>/dev/null) && grep -qs mlflow.sh "/proc/$before/cmdline"; then
    kill "$before" || true
    while kill -0 "$before" 2>/dev/null; do sleep 0.2; done
fi
setsid nohup bash "$0" serve >>~/mlflow.log 2>&1 </dev/null &
echo $! >~/.mlflow.pid
