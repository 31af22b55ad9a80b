"""`sbatch clusters/slurm.sh` on a Slurm of one node, its daemons on a host of namespaces (support/hosts.py).

The script is as shipped; what it asks of a node is set by options of `sbatch`, to what there is here: two CPUs and no
GPU. Left out: more than one node, accounting, cgroups.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.hosts import Host, Network, checkout, lacking, tail, wait_until
from support.islands import write_data, write_space

ABSENT = [tool for tool in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(tool) is None]
WHY = lacking() or (f"not installed: slurm-wlm (no {', '.join(ABSENT)})" if ABSENT else "")
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(WHY), reason=WHY)]

CONFIG = """
ClusterName=deftx
SlurmctldHost=node
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
ReturnToService=2
NodeName=node CPUs=2 State=UNKNOWN
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE State=UP
"""
SUBMIT = (
    "cd ~/deftx-sweeps && VENV=~/venv sbatch --wait --nodes=1 --cpus-per-task=2 --gpus-per-node=0 --output=job.log "
    "clusters/slurm.sh tiny.yaml --data-root data"
)
DAEMONS = ("slurm", "munged")


def test_a_sweep_on_one_node_ends_and_its_ray_with_it(tmp_path: Path) -> None:
    with Network("10.78.0.0/24") as network, Host(tmp_path / "node", network, "node", "10.78.0.2", user="root") as node:
        start_slurm(node)
        here = checkout(node)
        write_data(here / "data")
        write_space(here / "tiny.yaml", baselines=["lt-sft"])
        done = node.call(["bash", "-l", "-c", SUBMIT], 300)
        log = here / "job.log"
        told = "\n".join([done.stdout, logs(node), tail(log.read_text()) if log.exists() else "no job.log"])
        assert done.returncode == 0, told
        assert (here / "results" / "sweeps" / "tiny" / "results.csv").is_file(), told
        wait_until(lambda: not left(node), 30, lambda: "\n".join(left(node)))


def start_slurm(node: Host) -> None:
    """Start munged, slurmctld and slurmd, and wait for the node."""
    folder = node.folder / "slurm"
    for path in (folder, folder / "state", folder / "spool"):
        path.mkdir()
    (folder / "key").write_bytes(b"k" * 128)
    (folder / "key").chmod(0o600)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder))
    node.environment["SLURM_CONF"] = str(folder / "slurm.conf")
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    node.start(["munged", "--foreground", "--force", f"--key-file={folder}/key", "--socket=/run/munge.sock", *munge])
    wait_until(lambda: node.call(["test", "-S", "/run/munge.sock"]).returncode == 0, 20, lambda: logs(node))
    node.start(["slurmctld", "-D"])
    node.start(["slurmd", "-D", "-N", "node"])
    wait_until(lambda: "idle" in node.call(["sinfo", "--noheader"]).stdout, 60, lambda: logs(node))


def logs(node: Host) -> str:
    files = [*(node.folder / "slurm").glob("*log"), node.folder / "started.log"]
    return "\n".join(f"--- {file.name}\n{tail(file.read_text(errors='replace'))}" for file in files if file.exists())


def left(node: Host) -> list[str]:
    return [command for command in node.processes() if not any(name in command for name in DAEMONS)]
