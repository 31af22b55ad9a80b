"""Hosts made of namespaces: each has its own processes, mounts, name, home, /tmp and sshd, and a network without exit.

Left out: users (each host's one user has uid 0, under the name asked for), systemd, limits, another root file system
(what is not named above is this machine's), and any installation: `~/venv` is a virtual environment that sees the
packages of the interpreter running the tests, and the project as it lies in `~/deftx-sweeps`.

Nothing of it outlives its `with`, nor the process that opened it, however that ends: every process of a host dies with
its first one, and that one with us.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
PROJECT = "deftx-sweeps"
TIMED_OUT = 124
_WITH_US = ["setpriv", "--pdeathsig", "KILL"]

_BOOT = """
set -e
hostname {name}
ip link set lo up
for path in {kept}; do mkdir -p {folder}/tmp/$path; mount --bind /tmp/$path {folder}/tmp/$path; done
mount --bind {folder}/home /home
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount -t tmpfs tmpfs /dev/shm
for file in passwd hosts resolv.conf; do mount --bind {folder}/etc/$file /etc/$file; done
{mounts}
mount --rbind {folder}/tmp /tmp
touch {folder}/booted
exec {python} -SE -c '{init}'
"""
# who comes to the first process of a namespace as an orphan must be waited for
_INIT = """
import os, time
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.1)
"""


@cache
def lacking() -> str:
    """What this machine lacks for hosts of namespaces, in words; empty where it has all."""
    tools = {"setpriv": "util-linux", "unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2",
             "rsync": "rsync", "ssh": "openssh-client", "/usr/sbin/sshd": "openssh-server"}  # fmt: skip
    missing = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    if os.getuid() != 0:
        return "namespaces are made by root alone"
    if missing:
        return f"not installed: {', '.join(missing)}"
    made = subprocess.run(["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "true"], capture_output=True)
    return "" if made.returncode == 0 else f"no namespaces here: {made.stderr.decode().strip()}"


def wait_until(what: Callable[[], Any], seconds: float, told: Callable[[], str] = lambda: "") -> Any:
    """What `what` returns as soon as it is true.

    Raises:
        AssertionError: it was not true in time; with the text of `told`.
    """
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, f"not within {seconds} s: {told()}"
        time.sleep(0.2)
    return value


class Network:
    """A cable that leads nowhere: a bridge without an address in a namespace of its own, where hosts are plugged in.

    Hosts have a network namespace each, with `lo` and one end of a cable. There is no route but that to the subnet.
    """

    def __init__(self, subnet: str) -> None:
        """A network of hosts in `subnet`, such as 10.77.0.0/24, an address range that is private."""
        self.subnet = ipaddress.ip_network(subnet)
        assert self.subnet.is_private, subnet
        self.ports = 0
        self.holder = subprocess.Popen([*_WITH_US, "unshare", "--net", "sleep", "infinity"])
        wait_until(lambda: Path(f"/proc/{self.holder.pid}/comm").read_text().strip() == "sleep", 10)
        links, routes = self._seen_by(self.holder.pid)
        assert (links, routes) == ({"lo"}, []), (links, routes)
        self.ip("link", "add", "br0", "type", "bridge")
        self.ip("link", "set", "br0", "up")

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.holder.kill()
        self.holder.wait()

    def ip(self, *arguments: str, of: int | None = None) -> str:
        """The output of `ip ...` in the bridge's namespace, or in that of process `of`."""
        command = ["nsenter", "--target", str(of or self.holder.pid), "--net", "ip", *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def plug_in(self, process: int, address: str) -> None:
        """Give the host of a process its address.

        Raises:
            AssertionError: a packet could leave: there is a device or a route besides.
        """
        links, routes = self._seen_by(process)
        assert (links, routes) == ({"lo"}, []), (links, routes)
        self.ports += 1
        port = f"port{self.ports}"
        self.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(process))
        self.ip("link", "set", port, "master", "br0", "up")
        self.ip("address", "add", f"{address}/{self.subnet.prefixlen}", "dev", "eth0", of=process)
        self.ip("link", "set", "eth0", "up", of=process)
        links, routes = self._seen_by(process)
        assert (links, routes) == ({"lo", "eth0"}, [str(self.subnet)]), (links, routes)
        assert not self._seen_by(self.holder.pid)[1], "the bridge has a route"

    def _seen_by(self, process: int) -> tuple[set[str], list[str]]:
        """The devices of a process, and its routes."""
        assert os.readlink(f"/proc/{process}/ns/net") != os.readlink("/proc/self/ns/net")
        links = {line.split()[1].rstrip(":").split("@")[0] for line in self.ip("-o", "link", of=process).splitlines()}
        return links, [route.split()[0] for route in self.ip("-4", "route", of=process).splitlines()]


class Host:
    """A machine of its own, in all that a cluster of Ray sees.

    Attributes:
        folder: of its files here: `home`, `tmp` and `etc`.
        home: what is `~` there, as a path here.
    """

    def __init__(
        self, folder: Path, network: Network, name: str, address: str, user: str = "ubuntu",
        keys: str = "", mounts: dict[str, Path] | None = None, environment: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """A running host, with an sshd where there are `keys`.

        Args:
            folder: for its files; made.
            keys: public keys that open it, a line each.
            mounts: a folder here, by the path at which it is seen there.
            environment: of every process started by `run` and by ssh.
        """
        self.folder, self.name, self.address, self.user = folder, name, address, user
        self.environment = {
            "HOME": f"/home/{user}", "USER": user, "LOGNAME": user, "SHELL": "/bin/bash", "LANG": "C.UTF-8",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", **(environment or {}),
        }  # fmt: skip
        self.home = folder / "home" / user
        self._furnish()
        needed = {ROOT, Path(sys.prefix), Path(sys.base_prefix), folder}
        kept = [str(path.relative_to("/tmp")) for path in needed if path.is_relative_to("/tmp")]
        lines = [f"mkdir -p {at} && mount --bind {path} {at}" for at, path in (mounts or {}).items()]
        python = Path(sys.executable).resolve()
        script = _BOOT.format(
            name=name, folder=folder, kept=" ".join(kept), mounts="\n".join(lines), python=python, init=_INIT
        )
        make = ["unshare", "--kill-child", "--fork", "--pid", "--mount", "--mount-proc", "--uts", "--net"]
        self.log: IO[bytes] = (folder / "boot.log").open("wb")
        self._maker = subprocess.Popen(
            [*_WITH_US, *make, "sh", "-c", script], stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL
        )
        try:
            wait_until((folder / "booted").exists, 20, lambda: (folder / "boot.log").read_text())
            children = Path(f"/proc/{self._maker.pid}/task/{self._maker.pid}/children")
            self.first = int(children.read_text().split()[0])
            network.plug_in(self.first, address)
            if keys:
                self._start_sshd(keys)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _furnish(self) -> None:
        for path in (self.home / ".ssh", self.folder / "tmp", self.folder / "etc"):
            path.mkdir(parents=True)
        (self.folder / "tmp").chmod(0o1777)
        for file in Path("/etc/skel").iterdir():
            shutil.copy(file, self.home)
        etc = self.folder / "etc"
        users = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
        ours = f"{self.user}:x:0:0::/home/{self.user}:/bin/bash"
        (etc / "passwd").write_text("\n".join([ours, *users, ""]))
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (etc / "resolv.conf").write_text("")
        make_venv(self.home / "venv", f"/home/{self.user}")

    def _start_sshd(self, keys: str) -> None:
        here = self.folder / "sshd"
        here.mkdir()
        (here / "keys").write_text(keys)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", here / "host_key"], check=True)
        settings = " ".join(shlex.quote(f"{key}={value}") for key, value in self.environment.items())
        (here / "config").write_text(
            f"ListenAddress {self.address}\nHostKey {here}/host_key\nAuthorizedKeysFile {here}/keys\nStrictModes no\n"
            f"UsePAM no\nPidFile none\nMaxSessions 100\nMaxStartups 100\nPrintMotd no\nSetEnv {settings}\n"
        )
        self.start(["/usr/sbin/sshd", "-D", "-f", here / "config", "-E", here / "log"])
        listening = ["ssh-keyscan", "-t", "ed25519", "-T", "1", self.address]
        wait_until(lambda: self.call(listening).stdout, 10, lambda: (here / "log").read_text())

    def inside(self, arguments: list[Any]) -> list[str]:
        """The command that runs `arguments` on this host, in the home folder."""
        enter = ["nsenter", "--target", str(self.first), "--pid", "--mount", "--uts", "--net"]
        environment = [f"{key}={value}" for key, value in self.environment.items()]
        return [*_WITH_US, *enter, "env", "-i", "-C", f"/home/{self.user}", *environment, *map(str, arguments)]

    def start(self, arguments: list[Any], log: Path | None = None) -> subprocess.Popen[bytes]:
        """A process of this host, which ends with it at the latest."""
        with (log or self.folder / "started.log").open("ab") as file:
            return subprocess.Popen(self.inside(arguments), stdout=file, stderr=file, stdin=subprocess.DEVNULL)

    def call(self, arguments: list[Any], seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, whatever its exit status; what it prints, errors too, is its `stdout`."""
        # not into a pipe, which would be waited on while a daemon holds it
        with tempfile.TemporaryFile("w+", errors="replace") as file:
            command = self.inside(arguments)
            try:
                done = subprocess.run(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, timeout=seconds)
                status = done.returncode
            except subprocess.TimeoutExpired:
                status = TIMED_OUT
            file.seek(0)
            return subprocess.CompletedProcess(command, status, file.read())

    def run(self, command: str, seconds: float = 60) -> str:
        """What a command typed into a login shell prints.

        Raises:
            AssertionError: it failed, or took longer; with the end of what it printed.
        """
        done = self.call(["bash", "-l", "-c", command], seconds)
        ended = f"not within {seconds} s" if done.returncode == TIMED_OUT else f"exit status {done.returncode}"
        assert done.returncode == 0, f"{command!r} on {self.name}: {ended}\n{tail(done.stdout)}"
        return done.stdout

    def processes(self) -> list[str]:
        """Command lines of what runs on this host, besides its first process and sshd."""
        return [command for _, command in self._running()]

    def kill(self, word: str) -> int:
        """End (-9) every process of this host whose command line has `word` in it; how many there were."""
        pids = [pid for pid, command in self._running() if word in command]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return len(pids)

    def _running(self) -> Iterator[tuple[int, str]]:
        ours = os.readlink(f"/proc/{self.first}/ns/pid")
        for path in Path("/proc").iterdir():
            if not path.name.isdecimal() or int(path.name) == self.first:
                continue
            try:
                if os.readlink(path / "ns" / "pid") != ours:
                    continue
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:  # it ended while it was looked at
                continue
            if command and not command.startswith(("sshd:", "/usr/sbin/sshd")):  # a zombie has no command line
                yield int(path.name), command

    def close(self) -> None:
        """The end of the host: all its processes, at once."""
        if self._maker.poll() is None:
            self._maker.kill()  # --kill-child: the first process dies with it, and with that one all others
            self._maker.wait()
            if hasattr(self, "first"):
                wait_until(lambda: not Path(f"/proc/{self.first}").exists(), 30)
        self.log.close()

    def logs(self) -> str:
        """The ends of the logs of this host that tell of the cluster."""
        files = [*(self.folder / "tmp" / "ray").glob("session_2*/logs/monitor*"), *self.home.glob("*.log")]
        return "\n".join(
            f"--- {self.name}: {file.name}\n{tail(file.read_text(errors='replace'), 15)}" for file in files
        )


def tail(text: str, lines: int = 25) -> str:
    """The end of a text."""
    return "\n".join(text.splitlines()[-lines:])


def new_key(path: Path) -> str:
    """Make an ssh key at `path`; its public half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.with_name(f"{path.name}.pub").read_text()


def checkout(host: Host) -> Path:
    """This checkout, in the home folder of a host, as one who has cloned it would have it."""
    there = host.home / PROJECT
    left_out = [f"--exclude={name}" for name in (".git", ".venv", "/results", "/build", "__pycache__", "/data")]
    subprocess.run(["rsync", "-a", *left_out, f"{ROOT}/", there], check=True)
    return there


def make_venv(folder: Path, home: str) -> None:
    """A virtual environment with the packages of ours, and the project of the home folder in place of this checkout.

    Its `pip` installs nothing: it writes what it was asked for into `~/pip.txt`.
    """
    venv.EnvBuilder(symlinks=True).create(folder)
    site = Path(*folder.parts, "lib", f"python3.{sys.version_info.minor}", "site-packages")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join([f"{home}/{PROJECT}", *packages, ""]))
    pip = folder / "bin" / "pip"
    pip.write_text('#!/bin/sh\necho "$@" >>~/pip.txt\n')
    pip.chmod(0o755)
    for name in ("ray", "mlflow", "deftx"):
        source = (Path(sys.prefix) / "bin" / name).read_text().split("\n", 1)[1]
        (folder / "bin" / name).write_text(f"#!{home}/venv/bin/python\n{source}")
        (folder / "bin" / name).chmod(0o755)
