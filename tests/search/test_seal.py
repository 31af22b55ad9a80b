"""Over whole sweeps: who opens sealed test scores, and when. Python itself is asked, by an audit hook."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import FrameType

import pytest
from support.islands import run, write_data, write_space

import deftx.method.grading
import deftx.stages.cache
import orchestrator.record.grades
from deftx.stages.files import SEALED
from orchestrator.record.sweep import State, SweepFolder
from orchestrator.tracking.mirror import Mirror

OPENERS = {
    deftx.method.grading.grade.__code__: "the stage that writes it",
    deftx.stages.cache.sha256_of.__code__: "the digest check",
    orchestrator.record.grades.Grades.read.__code__: "the door",
}
ENDED = "the search has ended"


class Watch:
    """What happened to sealed files and to the state of the sweep, in order; `events` is None while nobody looks."""

    events: list[str] | None = None

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and self.events is not None and str(arguments[0]).endswith(SEALED):
            self.events.append(opener(sys._getframe(1)))


def opener(frame: FrameType | None) -> str:
    """Which of the openers is nearest on the call stack; else the whole of it."""
    stack = []
    while frame is not None:
        if frame.f_code in OPENERS:
            return OPENERS[frame.f_code]
        stack.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return " < ".join(stack)


@cache
def watch() -> Watch:
    """The one hook of this process: it stays permanently, and does nothing while nobody looks."""
    hook = Watch()
    sys.addaudithook(hook)
    return hook


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The events of this test."""
    seen: list[str] = []
    write_state = SweepFolder.write_state

    def noted(folder: SweepFolder, state: State) -> None:
        write_state(folder, state)
        seen.extend([ENDED] if state.ended else [])

    monkeypatch.setattr(SweepFolder, "write_state", noted)
    monkeypatch.setattr(watch(), "events", seen)
    # each call to the tracker is waited for: a thread that lags behind would open nothing too early
    monkeypatch.setattr(Mirror, "_submit", lambda mirror, call: mirror._calls.apply(mirror._unless_quiet, (call,)))
    return seen


def test_until_the_search_has_ended_only_the_stage_and_the_digest_check_open_test_scores(
    tmp_path: Path, events: list[str]
) -> None:
    """A new sweep, and then a wider space: its state says at the start that it has ended."""
    data, storage = write_data(tmp_path / "data"), tmp_path / "storage"
    space = write_space(tmp_path / "tiny.yaml", rank_l=[2], rank_t=[2], baselines=["lt-sft"], source=None)
    for options, graded in ([], 4), (["--set", "rank_t=[2,4]"], 2):
        events.clear()
        assert run(space, data, storage, *options).exit_code == 0
        assert events.count(ENDED) == 1
        before, after = events[: events.index(ENDED)], events[events.index(ENDED) :]
        assert set(before) == {"the stage that writes it", "the digest check"}
        assert events.count("the stage that writes it") == graded
        assert set(after) - {ENDED, "the digest check"} == {"the door"}
