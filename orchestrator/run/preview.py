"""`--plan`: the stages that would run and those already in the store; nothing runs.

Exact for a grid. For TPE the first `search_parallelism` combinations, and the worst case, in which no later one shares
a setting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from humanize import natural_list

from deftx.sources.revisions import UNRESOLVED
from deftx.stages.kinds import KINDS
from deftx.stages.stage import Stage, walk
from deftx.stages.store import Store
from orchestrator.plan.rows import PlannedRow, with_vectors
from orchestrator.run.session import Prepared
from orchestrator.search.replay import Replay
from orchestrator.search.schedule import unmade
from orchestrator.space.combination import Combination
from orchestrator.space.schema import Space


@dataclass(frozen=True)
class Preview:
    """What a run would make.

    Attributes:
        search: stages to make for the combinations, inputs first.
        baselines: stages to make that only baselines need.
        checks: checks of texts to make, which train nothing.
        stored: stages in the store already.
        combinations: how many combinations are planned exactly.
        unresolved: hub revisions that could not be resolved.
    """

    space: Space
    search: list[Stage]
    baselines: list[Stage]
    checks: list[Stage]
    stored: list[Stage]
    combinations: int
    unresolved: list[str]

    @classmethod
    def of(cls, prepared: Prepared) -> Preview:
        """The preview of a prepared sweep."""
        space, rows, planner = prepared.space, _rows(prepared), prepared.planner
        chosen = _chosen_before(prepared, rows)
        controlled = (chosen.combination if chosen else None) or space.cells()[0]
        others = planner.baselines() + planner.controls(controlled)
        grades = [grade for row in rows + others for grade in row.grades.values()]
        parts = chosen.parts if chosen else []
        has = _has(prepared.folder.store, [*grades, *parts])
        search = {stage.address: stage for stage in unmade([*parts, *_wanted(rows)], has)}
        baselines = {stage.address: stage for stage in unmade(_wanted(others), has)}
        checks = planner.checks()
        stored = [stage for stage in walk([*checks, *grades]) if has(stage.address)]
        unresolved = sorted(key for key, answer in prepared.revisions.resolved.items() if answer == UNRESOLVED)
        return cls(
            space, list(search.values()), [stage for address, stage in baselines.items() if address not in search],
            [check for check in checks if not has(check.address)], stored, len(rows), unresolved,
        )  # fmt: skip

    def counts(self, kind: str) -> tuple[int, int]:
        """(to make, in the store) of a kind, baselines and checks included."""
        return _count(self.search + self.baselines + self.checks, kind), _count(self.stored, kind)

    def sentence(self) -> str:
        """The plan in words; baselines are counted apart."""
        words = (
            f"{_phases(self.search)} for {self.combinations} combinations; baselines: {_phases(self.baselines)} more"
        )
        if self.space.search == "tpe" and self.space.combinations and self.space.combinations > self.combinations:
            more = self.space.combinations - self.combinations
            worst = more * (len(self.space.targets) + 1)
            words += f"; the {more} later combinations need at most {worst} sparse trainings more"
        return words


def _has(store: Store, exact: Iterable[Stage]) -> Callable[[str], bool]:
    """Whether a run would find a stage in the store: `exact` ones by every byte, the others by `Store.has`."""
    by_bytes = {stage.address for stage in exact}
    return cache(lambda address: store.intact(address) if address in by_bytes else store.has(address))


def _wanted(rows: Iterable[PlannedRow]) -> Iterator[Stage]:
    return with_vectors(grade for row in rows for grade in row.grades.values())


def _chosen_before(prepared: Prepared, rows: Iterable[PlannedRow]) -> PlannedRow | None:
    """The row that an earlier run chose, or None."""
    chosen = prepared.folder.state().chosen_row
    return next((row for row in rows if chosen and row.record().grades == chosen.grades), None)


def _rows(prepared: Prepared) -> list[PlannedRow]:
    space = prepared.space
    cells = space.cells()[: space.combinations] if space.search == "grid" else _first_asks(space)
    return [prepared.planner.combination(number, cell) for number, cell in enumerate(cells)]


def _first_asks(space: Space) -> list[Combination]:
    replay = Replay(space)
    while not replay.ended() and replay.may_ask([False] * len(replay.asked)):
        replay.ask([None] * len(replay.asked))
    return replay.asked


def _phases(stages: Iterable[Stage]) -> str:
    """`6 dense and 12 sparse trainings`."""
    counts = Counter(stage.kind for stage in stages)
    return natural_list([f"{counts[name]} {name}" for name, kind in KINDS.items() if kind.is_phase]) + " trainings"


def _count(stages: Iterable[Stage], kind: str) -> int:
    return sum(stage.kind == kind for stage in stages)
