"""What a fault is, and a sweep that meets it: the command in a process of its own, which a test may kill.

The process is forked from one that has imported everything once, for an import takes longer than the sweep. A fault is
called in it before the command. Where a fault strikes is counted in the process itself, in files that it changes in its
storage (`FileOperations`) or in calls of a bucket, so that a seed finds its moment on any machine.
"""

from __future__ import annotations

import errno
import faulthandler
import itertools
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from support.bucket import Bucket
from support.patience import PATIENCE

Fault = Callable[["Sweep"], None]
HANGS_SECONDS = 45.0
"""After so long a command writes into its log where each thread is: less than what anything waits for."""

_FORKS = multiprocessing.get_context("forkserver")
# what a tiny sweep in one process imports; not of `support`, which the server, having another path, would not find
_FORKS.set_forkserver_preload([
    "alembic.command", "matplotlib.pyplot", "mlflow.store.db.utils", "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking.client", "optuna", "pandas.io.formats.csvs", "scipy.stats", "sklearn.metrics", "torch._dynamo",
    "transformers.models.xlm_roberta.modeling_xlm_roberta", "transformers.models.xlm_roberta.tokenization_xlm_roberta",
    "deftx.method.grading", "deftx.method.phases", "deftx.method.texts", "orchestrator.report.chosen",
    "orchestrator.report.markdown", "orchestrator.run.driver", "orchestrator.run.serial", "orchestrator.sweep",
    "orchestrator.tracking.mirror",
])  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_MAKES = ("open", "os.mkdir", "os.link", "os.rename")
_CHANGES = (*_MAKES, "os.remove", "os.rmdir", "shutil.rmtree")


@dataclass
class Sweep:
    """One command on one storage, and what every run of it has to leave as it was."""

    space: Path
    data: Path
    storage: Path
    options: tuple[str, ...] = ()
    name: str = "tiny"
    url: str | None = None
    """Of the storage, where it is a bucket: `bucket://` and the folder's name."""
    kept: dict[str, tuple[int, bytes]] = field(default_factory=dict, repr=False)
    """mtime and bytes of the manifests seen so far, by address."""

    @property
    def database(self) -> Path:
        return self.storage.parent / f"{self.storage.name}.db" if self.url else self.storage / "mlflow.db"

    @property
    def log(self) -> Path:
        return self.storage.parent / f"{self.storage.name}-{self.name}.log"

    @property
    def folder(self) -> Path:
        return self.storage / "sweeps" / self.name

    def words(self) -> list[str]:
        """What is typed after `python -m orchestrator.sweep`."""
        tracked = ["--tracking-uri", f"sqlite:///{self.database}"] if self.url else []
        places = ["--data-root", str(self.data), "--storage", self.url or str(self.storage)]
        return [str(self.space), *places, "--name", self.name, *tracked, *self.options]

    def start(self, *faults: Fault) -> BaseProcess:
        """The command, running."""
        return self._fork(self.words(), faults)

    def collect(self) -> None:
        """Remove what nothing needs any more, a claim that could not be given back too."""
        assert self.end(self._fork(["gc", "--storage", self.url or str(self.storage), "--yes"])) == 0

    def _fork(self, words: list[str], faults: tuple[Fault, ...] = ()) -> BaseProcess:
        process = _FORKS.Process(target=_drive, args=(self, words, faults))
        process.start()
        return process

    def run(self, *faults: Fault) -> int:
        """The exit code of the command; -9 where it was killed. No manifest that was there may have changed."""
        return self.end(self.start(*faults))

    def end(self, process: BaseProcess) -> int:
        """The exit code of the command that runs, once it has ended."""
        process.join(PATIENCE)
        assert process.exitcode is not None, self.log.read_text()
        self.look()
        return process.exitcode

    def look(self) -> None:
        """No manifest that was seen before is another now, and those of now are remembered."""
        now = {path.parent.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in self._manifests()}
        assert {address: now.get(address) for address in self.kept} == self.kept, "a finished stage was made again"
        self.kept = now

    def until_done(self, most: int = 3) -> None:
        """Run the same command until it says done, so many times at most; none may end in another way than it may."""
        for _ in range(most):
            if self.run() == 0:
                return
        raise AssertionError(f"not done after {most} more starts:\n{self.log.read_text()}")

    def _manifests(self) -> Iterator[Path]:
        return self.storage.glob("stages/*/manifest.json")

    def vectors(self) -> dict[str, bytes]:
        """The bytes of every published vector's tensors, by address; not of manifests that cannot be read."""
        found = {}
        for path in self._manifests():
            with suppress(ValueError, RecursionError, KeyError, TypeError, FileNotFoundError):
                tensors = path.parent / json.loads(path.read_bytes())["attempt"] / "sft/sft.safetensors"
                found[path.parent.name] = tensors.read_bytes()
        return found

    def table(self) -> bytes:
        return (self.folder / "results.csv").read_bytes()

    def runs(self) -> Counter[str]:
        """How many runs MLflow has of this sweep in each status; one for each stage and one for the sweep."""
        created = json.loads((self.folder / "sweep.json").read_bytes())["created"]
        query = (
            "select a.value, r.status from runs r join tags a on a.run_uuid = r.run_uuid and a.key = 'address' "
            "join tags s on s.run_uuid = r.run_uuid and s.key = 'sweep' and s.value = ? "
            "join tags c on c.run_uuid = r.run_uuid and c.key = 'sweep_created' and c.value = ? "
            "where r.lifecycle_stage = 'active'"
        )
        with closing(sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute(query, (self.name, created)).fetchall()
        assert len(dict(found)) == len(found), "a stage has two runs"
        return Counter(status for _, status in found)

    def left_over(self) -> list[str]:
        """What only a running sweep has: leases, claims, checkpoints, and files that were to replace another."""
        found = [*self.storage.rglob("lease.json*"), *self.storage.rglob("claim.json*")]
        found += self.storage.glob("stages/*/checkpoint")
        return [str(path.relative_to(self.storage)) for path in found]

    def check(self, undisturbed: Sweep) -> None:
        """All is as after a run that nothing disturbed, in the store and in MLflow."""
        assert self.vectors() == undisturbed.vectors()
        assert self.table() == undisturbed.table()
        assert self.left_over() == []
        runs = self.runs()
        assert runs == undisturbed.runs() == {"FINISHED": 14}, runs
        log = self.log.read_text()
        assert "Traceback" not in log and "Timeout (0:00:45)!" not in log, log


def _drive(sweep: Sweep, words: list[str], faults: tuple[Fault, ...]) -> None:
    """In the forked process: the command, after the faults."""
    from deftx.config import Execution
    from orchestrator.sweep import app

    log = os.open(sweep.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["sweep", *words]
    os.environ["HOME"] = str(sweep.storage.parent)  # where a remote store's cache lies
    faulthandler.dump_traceback_later(HANGS_SECONDS, file=log)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Execution.model_fields["checkpoint_seconds"].default = 1e-9  # after every step, so that a death is amid some
    Execution.model_rebuild(force=True)
    Bucket.folder = sweep.storage.parent
    if sweep.url:
        import fsspec

        fsspec.register_implementation("bucket", Bucket, clobber=True)
    for fault in faults:
        fault(sweep)
    app(words)


class FileOperations:
    """Calls `strike` with the number of each change of a file in the storage, before it, and with its name."""

    def __init__(self, storage: Path, strike: Callable[[int, str], None]) -> None:
        self._root, self._strike, self._numbers = f"{storage}/", strike, itertools.count()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _CHANGES or not any(self._inside(argument) for argument in arguments[:2]):
            return
        if event == "open" and not arguments[2] & _WRITING:
            return
        self._strike(next(self._numbers), event)

    def _inside(self, path: object) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self._root)


@dataclass(frozen=True)
class Counted:
    """No fault: how many changes of files an undisturbed run takes, written to a file."""

    file: Path

    def __call__(self, sweep: Sweep) -> None:
        FileOperations(sweep.storage, lambda number, _: self._note(number))

    def _note(self, number: int) -> None:
        self.file.write_text(str(number + 1))


@dataclass(frozen=True)
class Signalled:
    """The process gets a signal before its change `at` of a file, or so many seconds later: amid whatever is then."""

    at: int
    number: int = signal.SIGKILL
    later: float = 0.0

    def __call__(self, sweep: Sweep) -> None:
        FileOperations(sweep.storage, self._strike)

    def _strike(self, number: int, _: str) -> None:
        if number != self.at:
            return
        if self.later:  # from a thread: a handler of an alarm would stand between the signal and what it interrupts
            timer = threading.Timer(self.later, os.kill, (os.getpid(), self.number))
            timer.daemon = True
            timer.start()
        else:
            os.kill(os.getpid(), self.number)


@dataclass(frozen=True)
class Refused:
    """From change `at` of a file on the system refuses to write there: full or, where it may not remove, read-only."""

    at: int
    number: int = errno.ENOSPC

    def __call__(self, sweep: Sweep) -> None:
        FileOperations(sweep.storage, partial(self._strike, str(sweep.storage)))

    def _strike(self, place: str, number: int, event: str) -> None:
        if number >= self.at and (self.number == errno.EROFS or event in _MAKES):
            raise OSError(self.number, os.strerror(self.number), place)


@dataclass(frozen=True)
class ClockJumps:
    """From change `at` of a file on, -1 for the start, the clock is so many seconds off; a monotonic one is not."""

    at: int
    by: float

    def __call__(self, sweep: Sweep) -> None:
        FileOperations(sweep.storage, self._strike)
        self._strike(-1, "start")

    def _strike(self, number: int, _: str) -> None:
        if number == self.at:
            honest, honest_ns = time.time, time.time_ns
            time.time = lambda: honest() + self.by
            time.time_ns = lambda: honest_ns() + int(self.by * 1e9)


@dataclass(frozen=True)
class Elsewhere:
    """The process is on another host, for all that leases can tell; and they beat twenty times as often."""

    host: str = "elsewhere"

    def __call__(self, sweep: Sweep) -> None:
        import socket

        from deftx.stages import lease
        from orchestrator.record import lease as driving

        socket.gethostname = lambda: self.host
        lease.BEAT_SECONDS, lease.DEAD_AFTER_SECONDS = lease.BEAT_SECONDS / 20, lease.DEAD_AFTER_SECONDS / 20
        lease._LOOK_SECONDS /= 20
        driving.WATCHED_SECONDS /= 20


@dataclass(frozen=True)
class NotANumber:
    """The loss of one language's dense training is NaN from a step on, as at a learning rate that is too high."""

    subject: str
    step: int

    def __call__(self, sweep: Sweep) -> None:
        from deftx.method import phases
        from deftx.train.objectives import MaskedLanguageModelling

        honest_dense, honest_loss = phases.dense, MaskedLanguageModelling.loss

        def dense(context: Any) -> Any:
            losses = itertools.count()

            def loss(*arguments: Any) -> Any:
                worth = honest_loss(*arguments)
                return worth * float("nan") if next(losses) >= self.step else worth

            spoilt = loss if context.stage.subject == self.subject else honest_loss
            MaskedLanguageModelling.loss = spoilt  # type: ignore[method-assign]
            return honest_dense(context)

        phases.dense = dense


@dataclass(frozen=True)
class Patience:
    """No fault: the command may take so many seconds before it counts as one that hangs."""

    seconds: float

    def __call__(self, sweep: Sweep) -> None:
        faulthandler.dump_traceback_later(self.seconds, file=2)  # its log


@dataclass(frozen=True)
class Environment:
    """No fault: variables of the environment, as they say where a bucket is."""

    variables: Mapping[str, str]

    def __call__(self, sweep: Sweep) -> None:
        os.environ.update(self.variables)


@dataclass(frozen=True)
class Calls:
    """What a bucket does instead of answering, by the number of the call: fail now and then, refuse, or take its time.

    Attributes:
        every: each so manieth call fails, with an error of the disk and one of the network in turn.
        first: the first call that fails.
        read_only: from this call on nothing is written.
        dies: at this call the process is killed.
        seconds: that a call takes at most; how many is drawn.
    """

    every: int = sys.maxsize
    first: int = sys.maxsize
    read_only: int = sys.maxsize
    dies: int = sys.maxsize
    seconds: float = 0.0

    def __call__(self, sweep: Sweep) -> None:
        numbers, random_ = itertools.count(), random.Random(self.first)
        errors = itertools.cycle([OSError(errno.EIO, os.strerror(errno.EIO)), ConnectionError("connection reset")])

        def before(call: str, writes: bool) -> None:
            number = next(numbers)
            if number >= self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            if number >= self.first and (number - self.first) % self.every == 0:
                raise next(errors)
            if writes and number >= self.read_only:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if self.seconds:
                time.sleep(random_.uniform(0, self.seconds))

        Bucket.before = staticmethod(before)
