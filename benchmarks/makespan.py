"""How long a sweep would take on 1, 8 and 64 GPUs, simulated from its plan: no Ray, and nothing is trained.

The real `Schedule` hands out jobs to so many workers, each with a GPU. A training takes the hours of `--plan`'s
estimate, a text 2 minutes, a check and each grade of a job 1 (assumed). Compared with the order of the rows, which is
what the schedule did before it preferred the longest chain, and with what no order could be below: the longest chain,
or all work over the workers.

Languages have Wikipedias of 1 to 100 MB, drawn from their names. The spaces are that of Table 2, the same grid on 50
languages, and `nusax`, which asks for combinations as results come in.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from benchmarks.measure import Options
from benchmarks.results import BenchmarkRow, command
from benchmarks.sweep import planner_of
from deftx.stages.kinds import F
from deftx.stages.stage import Stage
from orchestrator.plan.cost import gpu_hours
from orchestrator.plan.rows import PlannedRow, Planner
from orchestrator.search.choice import Choice
from orchestrator.search.replay import Replay
from orchestrator.search.schedule import Job, Schedule
from orchestrator.space.load import load_space
from orchestrator.space.schema import Space

ASSUMED = {"text": 2 / 60, "check": 1 / 60, "grade": 1 / 60}
"""Hours of what trains nothing."""
GPUS = (1, 8, 64)
LANGUAGES = 50


def rows(options: Options) -> list[BenchmarkRow]:
    """Hours of each space on each number of GPUs."""
    found = []
    for title, space in spaces(5 if options.small else LANGUAGES).items():
        for gpus in GPUS:
            hours, schedule = simulate(space, gpus, gpu_hours)
            before, _ = simulate(space, gpus, lambda stage: 0.0)
            chain, work = bounds(schedule)
            note = (
                f"reference: in the order of the rows; {len(schedule.stages)} stages; "
                f"busy {work / gpus / hours * 100:.0f} % of the time; "
                f"longest chain {chain:.2f} h, all work {work:.1f} h"
            )
            name = f"{title}, {gpus} GPU{'s' * (gpus > 1)}"
            found.append(BenchmarkRow(name, "hours", hours, before, max(chain, work / gpus), note=note))
    return found


def spaces(languages: int) -> dict[str, Space]:
    """The spaces by their titles; trainings in bf16, as on a GPU."""
    (_, table2), (_, nusax) = load_space("nusax-table2"), load_space("nusax")
    own = {"name": "many", "labels": ["negative", "neutral", "positive"], "source_language": "id"}
    targets = [f"l{number}" for number in range(languages)]
    many = {**table2.model_dump(mode="json"), "benchmark": own, "targets": targets}
    return {
        "Table 2's grid": table2,
        f"the same on {languages} languages": Space.model_validate(many),
        "nusax, 24 combinations by TPE": nusax,
    }


def bytes_of(language: str) -> int:
    """The size of a language's made-up Wikipedia, from its name."""
    return round(10 ** random.Random(language).uniform(6, 8))


def simulate(
    space: Space, gpus: int, hours: Callable[[Stage], float], planner: Planner | None = None
) -> tuple[float, Schedule]:
    """Hours until everything is made, and the schedule then.

    Args:
        gpus: workers; each carries out one job at a time.
        hours: of a stage, as the schedule is told.
        planner: plans the space.
    """
    done: set[str] = set()
    planner = planner or planner_of(space, bytes_of)
    schedule = Schedule(Replay(space), planner, _MadeUp(space), done.__contains__, done.__contains__, hours=hours)
    schedule.begin()
    clock, started, running = 0.0, 0, list[tuple[float, int, Job]]()
    while not schedule.finished():
        while len(running) < gpus and (job := schedule.ready()) is not None:
            started += 1
            heapq.heappush(running, (clock + sum(map(duration, job.stages)), started, job))
        clock, _, job = heapq.heappop(running)
        for stage in job.stages:
            done.add(stage.address)
            schedule.done(stage.address)
    return clock, schedule


def duration(stage: Stage) -> float:
    """Hours that a stage takes in the simulation."""
    return ASSUMED.get(stage.kind, 0.0) or gpu_hours(stage)


def bounds(schedule: Schedule) -> tuple[float, float]:
    """Hours of the longest chain of stages, and of all of them."""
    ends = dict[str, float]()
    for address, stage in schedule.stages.items():  # inputs first
        ends[address] = duration(stage) + max((ends[needed.address] for _, needed in stage.inputs), default=0.0)
    return max(ends.values()), sum(map(duration, schedule.stages.values()))


class _MadeUp(Choice):
    """Scores that depend on the combination alone."""

    def __init__(self, space: Space) -> None:
        super().__init__(space, _unmeasured)

    def score(self, row: PlannedRow) -> float:
        return random.Random(str(row.combination)).random()

    def _mean_ranks(self, row: PlannedRow) -> tuple[float, float]:
        return 0.0, 0.0


def _unmeasured(stage: Stage, kind: type[F], /) -> F:
    raise AssertionError(f"{stage.label}: nothing was measured")


if __name__ == "__main__":
    command({"makespan": rows}, __doc__)
