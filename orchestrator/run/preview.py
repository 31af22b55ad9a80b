"""`--plan`: the stages that would run and those found in the store; nothing runs.

Exact for a grid. For TPE the first `lag` combinations, and the worst case, in which no later one shares a setting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from humanize import natural_list

from deftx.sources.pins import UNRESOLVED
from deftx.stages.kinds import KINDS
from deftx.stages.stage import Stage, walk
from orchestrator.plan.rows import PlannedRow
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
        found: stages in the store already.
        combinations: how many combinations are planned exactly.
        unresolved: hub revisions that could not be resolved.
    """

    space: Space
    search: list[Stage]
    baselines: list[Stage]
    checks: list[Stage]
    found: list[Stage]
    combinations: int
    unresolved: list[str]

    @classmethod
    def of(cls, prepared: Prepared) -> Preview:
        """Plan a prepared sweep."""
        space, has = prepared.space, prepared.folder.store.has
        rows, planner = _rows(prepared), prepared.planner
        others = planner.baselines() + planner.controls(space.cells()[0])
        search = {stage.address: stage for row in rows for stage in unmade(row.grades.values(), has)}
        baselines = {stage.address: stage for row in others for stage in unmade(row.grades.values(), has)}
        checks = planner.checks()
        grades = [grade for row in rows + others for grade in row.grades.values()]
        found = [stage for stage in walk([*checks, *grades]) if has(stage.address)]
        unresolved = sorted(key for key, answer in prepared.pins.resolved.items() if answer == UNRESOLVED)
        return cls(
            space, list(search.values()), [stage for address, stage in baselines.items() if address not in search],
            [check for check in checks if not has(check.address)], found, len(rows), unresolved,
        )  # fmt: skip

    def counts(self, kind: str) -> tuple[int, int]:
        """(to make, in the store) of a kind, baselines and checks included."""
        return _count(self.search + self.baselines + self.checks, kind), _count(self.found, kind)

    def sentence(self) -> str:
        """The plan in words, the baselines counted apart."""
        words = (
            f"{_phases(self.search)} for {self.combinations} combinations; baselines: {_phases(self.baselines)} more"
        )
        if self.space.search == "tpe" and self.space.combinations and self.space.combinations > self.combinations:
            more = self.space.combinations - self.combinations
            worst = more * (len(self.space.targets) + 1)
            words += f"; the {more} later combinations need at most {worst} sparse trainings more"
        return words


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
