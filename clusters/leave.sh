#!/usr/bin/env bash
# For a worker of clusters/local.yaml, once its Ray has started; returns at once. `ray down` stops the head's Ray alone:
# a worker's ends by itself when it has missed the head for a minute, all but its log monitor, which is ended here.
set -euo pipefail
raylet=$(pgrep -n -u "$(id -u)" raylet)
monitor=$(pgrep -n -u "$(id -u)" -f ray/_private/log_monitor.py)
setsid nohup bash -c "while kill -0 $raylet; do sleep 2; done; kill $monitor" >/dev/null 2>&1 </dev/null &
