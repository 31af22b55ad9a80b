"""One call of the sweep command: from its arguments to a prepared sweep, and from there to an exit code.

0 all done    2 the user's mistake (raised as DeftxError)    3 a stage failed permanently    4 the machine refused
130 interrupted    143 told to end (SIGTERM)    129 the terminal was closed (SIGHUP)
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

from deftx.cli.command import REFUSED
from deftx.data.catalogue import OwnBenchmark
from deftx.errors import ConfigError
from deftx.sources.published import LocalFolder
from deftx.sources.revisions import Revisions, pinned_revisions
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from orchestrator.plan.inputs import ResolvedInputs, resolve
from orchestrator.plan.rows import Planner
from orchestrator.record.lease import driving
from orchestrator.record.sweep import State, SweepFolder, SweepInfo
from orchestrator.run.driver import Driver
from orchestrator.run.signals import exit_code, interruptible
from orchestrator.search.replay import export_journal
from orchestrator.space.schema import Pretraining, Space

Run = Callable[[Driver], None]

_PRETRAINED = "stage "
"""How the identity of a backbone that is pre-trained here begins."""
_CHANGED = "its settings, or a newer version of this software, changed it; --name starts a new sweep beside this one"


@dataclass(frozen=True)
class Prepared:
    """A space with everything it reads resolved, ready to be planned or run."""

    title: str
    space: Space
    folder: SweepFolder
    resolved: ResolvedInputs
    planner: Planner
    revisions: Revisions = field(default_factory=Revisions)

    @property
    def backbone(self) -> str:
        """The identity of the backbone: hub id and commit, content of a folder, or address of the stage."""
        backbone = self.resolved.backbone
        if isinstance(backbone, Stage):
            return f"{_PRETRAINED}{backbone.address}"
        if isinstance(backbone, LocalFolder):
            return f"folder {backbone.sha256}"
        return f"{backbone.repo}@{backbone.commit}"


def prepare(title: str, space: Space, folder: SweepFolder, data_root: str | None, *, lenient: bool = False) -> Prepared:
    """A space with what it reads resolved, at the revisions that an earlier start of the sweep recorded.

    Args:
        title: the space's name.
        lenient: mark hub revisions that cannot be resolved rather than failing: for a plan.

    Raises:
        DeftxError: for what is missing or unreachable, and when the sweep's name stands for something else.
    """
    info = folder.info()
    _check_same(info, space)
    root = data_root
    if space.benchmark == "archipelago" and root is None:
        root = _demo_data(space, folder.store, keep=not lenient)
    with pinned_revisions(Revisions(dict(info.revisions) if info else {}, lenient)) as revisions:
        resolved = resolve(space, root)
    prepared = Prepared(title, space, folder, resolved, Planner(space, resolved), revisions)
    if info is not None and not lenient and info.backbone_identity != prepared.backbone:
        identities = info.backbone_identity, prepared.backbone
        if all(identity.startswith(_PRETRAINED) for identity in identities):
            raise ConfigError(_another(info, "backbone", *identities, advice=_CHANGED))
        raise ConfigError(_another(info, "backbone", *identities))
    return prepared


def run(driver: Driver, work: Run) -> int:
    """The exit code of a sweep that is run to its end; its state was recorded as not ended before."""
    try:
        with suppress(KeyboardInterrupt), interruptible(driver):
            work(driver)
    except BaseException:
        driver.keep_state(now=True)
        raise
    finished = driver.finished() and not driver.interrupted and not driver.refused
    with driver.refusals():
        driver.write_state(ended=finished)
        _export_search(driver)
    if driver.refused:
        return REFUSED
    if not finished:
        return exit_code(driver.interrupted or signal.SIGINT)
    return 3 if driver.schedule.failures else 0


@contextmanager
def held(prepared: Prepared) -> Iterator[SweepInfo]:
    """A context that holds the sweep's lease, with the sweep's record.

    Raises:
        StoreError: while another driver lives.
    """
    with driving(prepared.folder):
        info = _info(prepared)
        prepared.folder.write_info(info)
        yield info


def forget_failures(folder: SweepFolder) -> int:
    """How many recorded failures were deleted, so that their stages are tried again."""
    failures = folder.failures()
    for address in failures:
        folder.forget_failure(address)
    return len(failures)


def summary(state: State) -> str:
    """How many stages are done, failed and waiting."""
    counts = {s: sum(e.status == s for e in state.stages.values()) for s in ("done", "reused", "failed", "waiting")}
    return ", ".join(f"{number} {status}" for status, number in counts.items() if number) or "nothing planned yet"


def _export_search(driver: Driver) -> None:
    """Write the search as an Optuna journal beside the report, for dashboards."""
    scores = [driver.schedule.scores.get(number) for number in range(len(driver.asked))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optuna.log"
        export_journal(path, driver.space, driver.asked, scores)
        driver.folder.write_file(path.read_bytes(), path.name)


def _info(prepared: Prepared) -> SweepInfo:
    recorded, now = prepared.folder.info(), datetime.now(UTC).isoformat(timespec="seconds")
    # imports torch, which a plan does without
    from deftx.method.environment import git_commit

    space = prepared.space
    backbone = "pre-trained here" if isinstance(space.backbone, Pretraining) else space.backbone
    return SweepInfo(
        name=prepared.folder.name, benchmark=space.benchmark_spec.name, backbone=backbone,
        backbone_identity=prepared.backbone, seed=space.seed,
        space={"name": prepared.title, **space.model_dump(mode="json")},
        revisions=prepared.revisions.resolved, command=["python", "-m", "orchestrator.sweep", *sys.argv[1:]],
        packages={d.metadata["Name"]: d.version for d in sorted(distributions(), key=lambda d: d.metadata["Name"])},
        git_commit=git_commit(), created=recorded.created if recorded else now,
    )  # fmt: skip


def _check_same(info: SweepInfo | None, space: Space) -> None:
    if info is None:
        return
    recorded = info.space["benchmark"]  # a field that was added since may be missing
    same = OwnBenchmark.model_validate(recorded) if isinstance(recorded, dict) else recorded
    if same != space.benchmark:
        raise ConfigError(_another(info, "benchmark", recorded, space.model_dump(mode="json")["benchmark"]))
    if info.seed != space.seed:
        raise ConfigError(_another(info, "seed", info.seed, space.seed))


def _another(
    info: SweepInfo, setting: str, old: object, new: object, advice: str = "give this one another --name"
) -> str:
    return f"sweep {info.name!r} has {setting} {old}, not {new}: {advice}"


def _demo_data(space: Space, store: Store, *, keep: bool) -> str:
    """The root of the demo's data, which is written into the storage; for a plan, into memory."""
    from deftx.data.archipelago import write_family

    folder = store.path("data", f"archipelago-{space.seed}")
    url = folder if store.local else str(store.fs.unstrip_protocol(folder))
    root = url if keep else f"memory://plan{folder}"
    with store.asked():
        write_family(root, space.seed)
    return root
