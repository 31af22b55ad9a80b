"""The search as a replay: ask n is a function of (space, seed, n, results of asks 0..n-p). Only importer of optuna.

p is the space's `search_parallelism`, the batch size of the constant liar. Ask n sees asks 0..n-p as finished, told in
ask order, and asks n-p+1..n-1 as RUNNING; its sampler is seeded from (seed, n). The study is in memory, grows by what
each ask may know, and is never read back: every start asks anew against the results, so the combinations are the same
for any number of workers, after a resume, and after a crash of the driver. A journal for dashboards is an export.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial

from orchestrator.space.combination import Combination
from orchestrator.space.schema import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)

CombinationScore = float | None
"""A combination's score; None when it failed."""

_REPEATS_IN_A_ROW = 20


class Replay:
    """The search of one space: holds what was asked so far; scores are passed in with each ask."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._cells = space.cells()
        self._total = min(space.combinations or len(self._cells), len(self._cells))
        self._distributions = _distributions(space)
        self._asked: dict[Combination, int] = {}
        """What was asked, and as which ask."""
        self._running: deque[tuple[int, Combination]] = deque()
        """Trials of the study that are not told yet, by number, in the order of asking; repeats are among them."""
        self._study = optuna.create_study(direction="maximize", sampler=TPESampler(seed=0))

    @property
    def asked(self) -> list[Combination]:
        """The combinations asked so far, in order."""
        return list(self._asked)

    def may_ask(self, finished: Sequence[bool]) -> bool:
        """Whether ask n can be made now: asks 0..n-p have finished and the search has not ended.

        Args:
            finished: for each ask so far, whether it has a result.
        """
        n = len(self._asked)
        return n < self._total and all(finished[: max(n - self._space.search_parallelism + 1, 0)])

    def ended(self) -> bool:
        """Whether the search has ended."""
        return len(self._asked) >= self._total

    def ask(self, scores: Sequence[CombinationScore]) -> Combination | None:
        """The next combination, or None when the search ends because only repeats were drawn.

        Args:
            scores: of the asks so far; those later than n-p are not looked at.
        """
        cell = self._draw(scores)
        if cell is None:
            self._total = len(self._asked)
        else:
            self._asked[cell] = len(self._asked)
        return cell

    def _draw(self, scores: Sequence[CombinationScore]) -> Combination | None:
        n = len(self._asked)
        if self._space.search == "grid":
            return self._cells[n]
        self._tell(scores)
        if n < len(self._space.first) and self._cells[n] not in self._asked:
            self._study.add_trial(_trial(self._cells[n], self._distributions, None, TrialState.RUNNING))
            self._running.append((len(self._study.get_trials(deepcopy=False)) - 1, self._cells[n]))
            return self._cells[n]
        for attempt in range(_REPEATS_IN_A_ROW):
            cell = self._suggest(n, attempt)
            if cell not in self._asked:
                return cell
            self._tell(scores)  # a repeat of what has a result has that at once
        return None

    def _suggest(self, n: int, attempt: int) -> Combination:
        seed = zlib.crc32(f"{self._space.seed}/{n}/{attempt}".encode())
        self._study.sampler = TPESampler(seed=seed, constant_liar=True)
        trial = self._study.ask(self._distributions)
        cell = Combination.read(trial.params, self._space.retention_of)
        self._running.append((trial.number, cell))
        return cell

    def _tell(self, scores: Sequence[CombinationScore]) -> None:
        """Tell the study what the next ask may know: the results of asks 0..n-p, and of what repeats them."""
        visible = max(len(self._asked) - self._space.search_parallelism + 1, 0)
        for _ in range(len(self._running)):
            number, cell = self._running.popleft()
            if self._asked[cell] >= visible:
                self._running.append((number, cell))
            elif (score := scores[self._asked[cell]]) is None:
                self._study.tell(number, state=TrialState.FAIL)
            else:
                self._study.tell(number, score)


def export_journal(path: Path, space: Space, asked: Sequence[Combination], scores: Sequence[CombinationScore]) -> None:
    """Write the search as an Optuna journal for dashboards; it is never read back."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.unlink(missing_ok=True)
    study = optuna.create_study(
        study_name="sweep", direction="maximize", storage=JournalStorage(JournalFileBackend(str(path)))
    )
    for cell, score in zip(asked, scores, strict=True):
        state = TrialState.FAIL if score is None else TrialState.COMPLETE
        study.add_trial(_trial(cell, _distributions(space), score, state))


def _trial(
    cell: Combination, distributions: dict[str, BaseDistribution], score: CombinationScore, state: TrialState
) -> optuna.trial.FrozenTrial:
    """A combination as a trial of Optuna: the parameters that the space searches by name, ranks as text."""
    values = {**cell.record(), "retention": cell.language.retention}
    params = {name: values[name] for name in distributions}
    return create_trial(params=params, distributions=distributions, value=score, state=state)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {name: CategoricalDistribution(values) for name, values in space.parameters.items()}
