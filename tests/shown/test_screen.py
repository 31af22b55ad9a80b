"""The screen: counts and time left worked by hand, several widths, a pipe and a real terminal."""

from __future__ import annotations

import logging
import os
import pty
import re
import select
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from support.facts import metrics_of
from support.islands import folder_of, run, write_data, write_space
from support.patience import PATIENCE
from support.plans import World, make_planner, make_schedule, make_space

from deftx.cli.command import console
from deftx.stages.kinds import F, facts_of
from deftx.stages.manifest import Manifest
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from orchestrator.record.sweep import Failure, SweepFolder
from orchestrator.run.logs import logging_to
from orchestrator.search.schedule import Job
from orchestrator.terminal.progress import Left, Progress, duration
from orchestrator.terminal.screen import Screen
from orchestrator.terminal.table import board, format_left
from orchestrator.wording import format_score, stage_warnings

TARGETS = ("ace", "ban", "bbc", "bjn", "bug", "en", "jv", "mad", "min", "nij", "su")
LINES = re.compile(
    r"(done {4}|warning |\.\.\. {5}|chosen: | {2}vector of |export: |report: |browse: |nothing is left| {8})"
)
"""How every line begins that the command prints in a pipe."""


class FakeDriver:
    """What the screen asks of a driver, with stage times and metrics given by the test."""

    def __init__(self, **space: Any) -> None:
        self.space = make_space(**space)
        self.replay, self.schedule = make_schedule(self.space, World())
        self.folder = SimpleNamespace(name="hand")
        self.jobs: list[Job] = []
        self.took: dict[str, float] = {}
        self.now = 0.0
        self.progress = Progress(self, make_planner(self.space), slots=2, clock=lambda: self.now)  # type: ignore[arg-type]

    @property
    def asked(self) -> Any:
        return self.replay.asked

    def seconds(self, stage: Stage) -> float:
        return self.took[stage.address]

    def facts(self, stage: Stage, kind: type[F]) -> F:
        return facts_of(manifest(stage), kind)

    def manifest(self, stage: Stage) -> Manifest:
        return manifest(stage)

    def stage(self, label: str) -> Stage:
        """The stage of a label, of those to come too."""
        known = {**self.schedule.stages, **{stage.address: stage for stage in self.progress._left()}}
        (found,) = [stage for stage in known.values() if stage.label == label]
        return found

    def start(self, *labels: str) -> None:
        """A job of these stages is handed out."""
        stages = tuple(self.stage(label) for label in labels)
        self.jobs.append(self.schedule._start("job", stages))
        for stage in stages:
            self.progress.started(stage)

    def finish(self, label: str, seconds: float, reused: bool = False) -> None:
        """A stage is published, which took so long."""
        stage = self.stage(label)
        self.jobs = [job for job in self.jobs if stage not in job.stages]
        self.took[stage.address] = seconds
        self.schedule.done(stage.address)
        self.schedule.done_before |= {stage.address} if reused else set()
        self.progress.done(stage)

    def left(self) -> Left | None:
        return self.progress.snapshot().left


def manifest(stage: Stage, **facts: Any) -> Manifest:
    given = {"attempt": "attempt-0", "files": {}, "seconds": 2.0, **facts}
    given["metrics"] = metrics_of(stage, **facts.get("metrics", {}))
    return Manifest(address=stage.address, kind=stage.kind, label=stage.label, identity=stage.identity(), **given)


def two_languages(**changes: Any) -> FakeDriver:
    """2 texts, 3 dense and 5 sparse stages, 4 grades, and the control's 2, which are enlisted at the end."""
    return FakeDriver(**{"rank_t": [8], "baselines": ["task"], **changes})


def drawn(driver: FakeDriver, width: int, height: int = 50, stage_warnings: tuple[str, ...] = ()) -> list[str]:
    target = Console(file=StringIO(), width=width, height=height, force_terminal=False, highlight=False)
    target.print(board(driver.progress.snapshot(), stage_warnings, width, height, driver.now))
    text = target.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


# -- time left --------------------------------------------------------------------------------------------------------


def test_time_left_by_hand() -> None:
    driver = two_languages()
    assert driver.left() is None, "nothing is measured"
    driver.finish("ace · text", 2.0)
    driver.finish("task · dense", 40.0)
    # known: the two texts (2 s left: ban's), and the task's sparse stage like its dense one; 42 / 2 < the chain of 40
    assert driver.left() == Left(40.0, exact=False)
    driver.finish("ban · text", 2.0)
    driver.finish("ace · dense", 20.0)
    # ban dense 20, task sparse 40, four language sparse stages of 20: 140 s on two slots; grades are unknown
    assert driver.left() == Left(70.0, exact=False)
    driver.finish("task · sparse · rank 8 · retention 5 %", 30.0)
    driver.finish("ace · sparse · rank 8 · retention 5 %", 10.0)
    driver.finish("ace · grade · task rank 8 retention 5 % + ace rank 8 retention 5 %", 3.0)
    # ban dense 20 + 3 sparse of 10 + 5 grades of 3 = 65 on two slots; the chain ban dense, sparse, grade is 33
    assert driver.left() == Left(33.0, exact=True)
    assert format_left(driver.left()) == "about 33 s left"
    assert format_left(driver.left(), passed=3.0) == "about 30 s left"
    assert format_left(driver.left(), passed=34.0) == "", "an estimate that has run out says nothing"


def test_the_pace_of_a_running_stage_by_hand() -> None:
    driver = two_languages()
    for label, seconds in (("ace · text", 2.0), ("ban · text", 2.0), ("task · dense", 40.0), ("ace · dense", 20.0)):
        driver.finish(label, seconds)
    driver.finish("task · sparse · rank 8 · retention 5 %", 30.0)
    driver.finish("ace · sparse · rank 8 · retention 5 %", 10.0)
    driver.finish("ace · grade · task rank 8 retention 5 % + ace rank 8 retention 5 %", 3.0)
    driver.now = 100.0
    driver.start("ban · dense")
    driver.now = 105.0
    assert driver.left() == Left(30.0, exact=True), "15 s of its 20 are left, and 45 s of other work: 60 on two slots"
    dense = driver.stage("ban · dense")
    driver.progress.stepped(dense.address, 2)
    driver.now = 109.0
    driver.progress.stepped(dense.address, 4)
    driver.now = 111.0
    # 2 s a step, 6 of 10 steps left, 2 s gone since the report: 10 s; 55 s on two slots
    assert driver.left() == Left(27.5, exact=True)
    (running,) = driver.progress.snapshot().running
    assert (running.stage.label, running.step, running.steps, running.began) == ("ban · dense", 4, 10, 100.0)
    driver.now = 500.0
    assert driver.left() == Left(22.5, exact=False), "a stage that takes longer than expected makes it a lower bound"


def test_a_first_report_gives_no_pace() -> None:
    """It may be the first since a checkpoint; so is one that goes back."""
    driver = two_languages()
    driver.start("task · dense")
    for now, step, left in ((10.0, 6, None), (12.0, 7, Left(26.0, exact=False)), (20.0, 4, None)):
        driver.now = now
        driver.progress.stepped(driver.stage("task · dense").address, step)
        # 2 s a step: 3 of 10 steps left, then the task's sparse stage, which takes as long as the whole dense one
        assert driver.left() == left


def test_reused_stages_are_measurements_too() -> None:
    driver = two_languages()
    driver.finish("ace · text", 7.0, reused=True)
    assert driver.left() == Left(7.0, exact=False)
    assert driver.progress.snapshot().reused == 1


def test_stages_of_a_grid_that_are_not_asked_yet_and_controls_are_counted() -> None:
    driver = two_languages(rank_l=[8, 16, 24, 32], search_parallelism=1)
    assert len(driver.asked) == 1
    snapshot = driver.progress.snapshot()
    assert snapshot.unasked == 0
    numbers = {
        kind: sum(t.total() for (_, of), t in snapshot.tallies.items() if of == kind) for kind in ("sparse", "grade")
    }
    assert numbers == {"sparse": 1 + 4 * 2, "grade": 4 * 2 + 2}


def test_what_will_fail_with_a_failed_stage_is_not_waited_for() -> None:
    driver = two_languages(rank_l=[8, 16, 24, 32], search_parallelism=1)
    driver.schedule.failed(driver.stage("ban · dense").address, "no")
    # of the three cells not asked yet nothing of ban's; the control on ban needs no vector of it
    left = [stage.label for stage in driver.progress._left() if stage.subject == "ban"]
    assert left == ["ban · grade · task rank 8 retention 5 %"]
    assert driver.progress.snapshot().tallies["ace", "sparse"]["waiting"] == 4


def test_with_tpe_time_left_is_a_lower_bound_until_all_is_asked() -> None:
    driver = two_languages(search="tpe", combinations=2, rank_l=[8, 16, 24, 32], search_parallelism=1)
    for stage in driver.progress._left():
        driver.finish(stage.label, 1.0)
        if driver.schedule.complete:
            break
        left = driver.left()
        assert left is None or not left.exact or len(driver.asked) == 2
    assert len(driver.asked) == 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (720, "12 min"), (12_000, "3 h 20 min"), (190_000, "2 d 4 h")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_score_goes_by_the_selections_proper_name() -> None:
    assert format_score(0.7858, "target-valid") == "78.58 on validation (few-label selection)"
    assert "selection without target labels" in format_score(-2.5, "unlabelled")
    assert "%" not in format_score(-2.5, "unlabelled")


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_tables_counts() -> None:
    driver = two_languages()
    for label in ("ace · text", "ban · text", "task · dense"):
        driver.finish(label, 2.0)
    driver.start("ace · dense")
    driver.schedule.failed(driver.stage("ban · dense").address, "no")
    lines = drawn(driver, 80)
    table = {line.split()[0]: line.split()[1:] for line in lines[1:-1]}
    assert table["done/all"] == ["text", "dense", "sparse", "grade", "all"]
    assert table["task"] == ["1/1", "0/1", "1/2"]
    assert table["ace"] == ["1/1", ">0/1", "0/2", "0/3", ">1/7"]
    assert " ".join(table["ban"]) == "1/1 1 failed 0/1 2 failed 0/2 2 failed 0/3 5 failed 1/7"
    assert table["all"][:2] == ["2/2", "1"]
    assert lines[0] == "sweep hand, 3/16 stages, 5 failed, 1 running, 0 s so far, at least 2 s left"
    assert lines[-1] == "> ace · dense, 10 steps, 0 s"


def test_every_width_keeps_its_lines_whole() -> None:
    driver = two_languages()
    driver.finish("ace · text", 2.0)
    driver.start("ban · text")
    driver.start("task · dense")
    driver.progress.stepped(driver.stage("task · dense").address, 3)
    driver.now = 5.0
    for width in (40, 80, 120):
        lines = drawn(driver, width, stage_warnings=("ace: too little text " * 9, "ban: too little text " * 9))
        assert max(map(len, lines)) <= width
        text = " ".join(lines)
        for words in ("sweep hand", "1/16 stages", "2 running", "5 s so far", "> task · dense, step 3/10, 5 s"):
            assert words in text
        assert lines[-1].startswith("2 warnings, the latest: ban: ")
        assert len(lines) == 10, lines
    narrow = drawn(driver, 40)
    assert [line.split() for line in narrow if line.startswith("ban")] == [["ban", ">0/7", "text"]]
    assert "text 1/2, dense 0/3, sparse 0/5," in narrow


def test_a_label_that_leaves_no_room_for_the_time_is_cut_to_subject_and_kind() -> None:
    driver, label = two_languages(), "ace · grade · task rank 8 retention 5 % + ace rank 8 retention 5 %"
    driver.start(label)
    driver.now = 5.0
    assert drawn(driver, len(f"> {label}, 5 s"))[-1] == f"> {label}, 5 s"
    for width in (len(f"> {label}, 5 s") - 1, 40):
        assert drawn(driver, width)[-1] == "> ace · grade, 5 s"


def test_twelve_languages_in_a_terminal_of_24_lines() -> None:
    source = {"learn": {"rank": 8, "retention": 0.05}, "start": False}  # the twelfth: Indonesian
    driver = two_languages(targets=TARGETS, source=source, baselines=["task+source"])
    driver.finish("task · dense", 9.0)
    for language in ("ace", "ban"):
        driver.finish(f"{language} · text", 2.0)
        driver.start(f"{language} · dense")
    for width in (40, 80):
        lines = drawn(driver, width, 24, ("ace: too little text",))
        assert len(lines) <= 24
        assert max(map(len, lines)) <= width
        assert lines[-1] == "warning: ace: too little text"
        waiting = [line.split() for line in lines if line.split()[1:2] == ["waiting"]]
        # of nine a text, a dense, 2 sparse stages and 3 grades each; of the source a text, a dense and a sparse stage
        assert waiting == ([["10", "waiting", "0/66"]] if width == 40 else [])
        assert sum("ace" in line.split()[:1] or "ban" in line.split()[:1] for line in lines) == 2
    low = drawn(driver, 80, 16, ("ace: too little text",))
    assert ["10", "waiting", "0/10", "0/10", "0/19", "0/27", "0/66"] in [line.split() for line in low]
    assert len(low) <= 16
    tall = drawn(driver, 80, 60)
    subjects = [line.split()[0] for line in tall]
    assert subjects[2:-4] == ["task", *TARGETS, "id"], subjects


# -- lines ------------------------------------------------------------------------------------------------------------


def screen_of(driver: FakeDriver, quiet: bool = False) -> tuple[Screen, StringIO]:
    out = StringIO()
    screen = Screen(console(file=out), quiet)
    screen.start(driver.progress)
    return screen, out


def finish(driver: FakeDriver, screen: Screen, label: str) -> None:
    stage = driver.stage(label)
    driver.took[stage.address] = 2.0
    driver.schedule.done(stage.address)
    screen.stage_done(stage, False)


def test_a_text_check_says_its_summary_and_its_warnings_and_no_file_is_read() -> None:
    driver = two_languages()
    screen, out = screen_of(driver)
    stage = make_planner(driver.space).checks()[0]
    driver.took[stage.address] = 1.0
    said = {"summary": "ace: 60 passages", "warnings": ["ace: [60] passages are few"]}
    driver.manifest = lambda stage: manifest(stage, details=said)  # type: ignore[method-assign]
    screen.stage_done(stage, False)
    assert out.getvalue().splitlines() == [
        "done    ace · check  1 s", "        ace: 60 passages", "warning ace: [60] passages are few",
    ]  # fmt: skip


def test_combinations_that_tpe_has_not_asked_are_told_apart() -> None:
    driver = two_languages(search="tpe", combinations=2, rank_l=[8, 16, 24, 32], search_parallelism=1)
    assert "1 combination not asked yet" in " ".join(drawn(driver, 120))


def test_plain_lines_and_a_progress_line_at_most_every_half_minute() -> None:
    driver = two_languages()
    screen, out = screen_of(driver)
    finish(driver, screen, "ace · text")
    assert out.getvalue() == "done    ace · text  2 s\n"
    for now in (29.0, 30.0, 45.0, 59.0, 61.0):
        driver.now = now
        screen.progress(driver.stage("task · dense").address, int(now), {})
    lines = out.getvalue().splitlines()[1:]
    assert lines == [
        "...     1/16 stages, 30 s so far, at least 2 s left",
        "...     1/16 stages, 61 s so far, at least 2 s left",
    ]


def test_quiet_says_failures_alone() -> None:
    driver = two_languages()
    screen, out = screen_of(driver, quiet=True)
    finish(driver, screen, "ace · text")
    driver.now = 100.0
    screen.stage_started(driver.stage("ban · text"))
    assert out.getvalue() == ""
    stage = driver.stage("ban · text")
    screen.stage_failed(stage, Failure(address=stage.address, label=stage.label, reason="[x]", final=True, log="a.log"))
    assert out.getvalue() == "FAILED  ban · text: [x]\n        log: a.log\n"


def test_no_colour_and_no_control_in_a_pipe_whatever_the_environment_forces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    driver = two_languages()
    screen, out = screen_of(driver)
    stage = driver.stage("ban · text")
    screen.stage_failed(stage, Failure(address=stage.address, label=stage.label, reason="x", final=True, log="a.log"))
    screen.stop()
    assert "\x1b" not in out.getvalue()


# -- warnings ---------------------------------------------------------------------------------------------------------


def test_warnings_from_a_manifest() -> None:
    driver = two_languages(rank_l=[200, "90%"])
    uniform = driver.stage("ace · sparse · rank 200 · retention 5 %")
    share = driver.stage("ace · sparse · rank 90% · retention 5 %")

    def matrices(*ranks: int) -> dict[str, Any]:
        return {"matrices": [{"name": str(n), "rank": rank} for n, rank in enumerate(ranks)]}

    (found,) = stage_warnings(manifest(uniform, details=matrices(200, 128, 64)))
    assert "rank 200 is more than 2 of 3 matrices" in found
    assert "64" in found
    assert stage_warnings(manifest(uniform, details=matrices(200, 200))) == []
    assert stage_warnings(manifest(share, details=matrices(200, 1))) == []
    (found,) = stage_warnings(manifest(share, metrics={"jaccard_lt_sft": 0.95}))
    assert "nearly LT-SFT's (Jaccard overlap 0.95)" in found
    assert stage_warnings(manifest(share, metrics={"jaccard_lt_sft": 0.949})) == []
    curve = [{"step": step, "valid_loss": 1.0} for step in (5.0, 10.0, 15.0)]
    (found,) = stage_warnings(manifest(share, metrics={"best_step": 5.0}, curve=curve))
    assert "never improved after step 5 of 15" in found
    assert stage_warnings(manifest(share, metrics={"best_step": 10.0}, curve=curve)) == []
    halved = manifest(share, details={"out_of_memory": "killed"}).model_copy(update={"execution": {"micro_batch": 8}})
    assert stage_warnings(halved) == ["made with 8 examples at once: killed"]


# -- logs -------------------------------------------------------------------------------------------------------------


def test_whatever_libraries_say_goes_to_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = SweepFolder(Store(str(tmp_path)), "quiet")
    library = logging.getLogger("somelibrary")
    own = logging.StreamHandler(sys.stderr)
    library.addHandler(own)
    library.propagate = False
    try:
        with logging_to(folder, "driver"):
            with logging_to(folder, "stage"):
                library.warning("by its own handler")
                logging.getLogger("another").warning("by the root")
                print("printed")
                sys.stderr.write("\r 50 %|#####     |")
                late = logging.StreamHandler()
            logging.getLogger("tune").error("of the driver")
            late.stream.write("by a handler made meanwhile\n")
        assert own.stream is sys.stderr
        library.warning("afterwards")
    finally:
        library.removeHandler(own)
    stage, driver = ((tmp_path / "sweeps/quiet/logs" / f"{name}.log").read_text() for name in ("stage", "driver"))
    for words in ("by its own handler", "WARNING another: by the root", "printed", "50 %|"):
        assert (stage.count(words), driver.count(words)) == (1, 0)
    assert "ERROR tune: of the driver" in driver
    assert "by a handler made meanwhile" in driver
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "afterwards\n"


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One combination, no baseline: 15 stages."""
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    return write_space(path, rank_l=[2], rank_t=[2], baselines=[], source=None)


def words(space: Path, data: Path, storage: Path, *options: str) -> list[str]:
    start = [sys.executable, "-m", "orchestrator.sweep", space, "--data-root", data, "--storage", storage, *options]
    return [str(word) for word in start]


def in_terminal(command: list[str], columns: int, rows: int, seconds: float = PATIENCE) -> tuple[int, str]:
    """Run a command in a pseudo-terminal; its exit code and all it wrote."""
    kept_out = ("CI", "NO_COLOR", "FORCE_COLOR")
    environment = {name: value for name, value in os.environ.items() if name not in kept_out}
    environment |= {"TERM": "xterm", "COLUMNS": str(columns), "LINES": str(rows)}
    main, other = pty.openpty()
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment, close_fds=True)
    os.close(other)
    written, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([main], [], [], 0.5)[0]:
            try:
                part = os.read(main, 65536)
            except OSError:  # the other end is closed
                break
            written += part
            if not part:
                break
    os.close(main)
    return process.wait(PATIENCE), written.decode()


def plain(text: str) -> list[str]:
    """The lines without control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "").splitlines()


def test_quiet_prints_the_outcome_and_nothing_else(space: Path, data: Path, tmp_path: Path) -> None:
    result = run(space, data, tmp_path, "--quiet")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.split(":")[0] for line in lines] == ["chosen", "report"]
    assert "few-label selection" in lines[0]
    logs = {path.stem for path in (tmp_path / "sweeps/tiny/logs").glob("*.log")}
    assert logs == {*folder_of(tmp_path, "tiny").state().stages, "driver"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--serial",), ()], ids=["serial", "ray"])
def test_nothing_foreign_in_a_pipe(space: Path, data: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "PYTHONWARNINGS": "default"}
    result = subprocess.run(
        words(space, data, tmp_path, *options), capture_output=True, text=True, timeout=PATIENCE, env=environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "\x1b" not in result.stdout
    assert [line for line in result.stdout.splitlines() if not LINES.match(line)] == []
    made = len(folder_of(tmp_path, "tiny").state().stages)
    assert sum(line.startswith("done ") for line in result.stdout.splitlines()) == made
    assert result.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--serial",), ()], ids=["serial", "ray"])
def test_a_real_terminal_of_forty_columns(space: Path, data: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    code, written = in_terminal(words(space, data, tmp_path, *options), 40, 24)
    assert code == 0, written
    lines = plain(written)
    state = folder_of(tmp_path, "tiny").state()
    assert any(f"sweep tiny, 0/{len(state.stages)} stages" in line for line in lines)
    # each where the table was a moment before
    assert written.count("done    ") == len(state.stages)
    assert "\x1b[?25l" in written, "the live table was drawn"
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "and the cursor is back"
    foreign = ("Traceback", "INFO", "WARNING", "Tune", "ray::", "Loading weights")
    assert not [line for line in lines if any(word in line for word in foreign)]
