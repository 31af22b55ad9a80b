"""A kind of stage that two calls make known is planned, run, shown, mirrored and reported like ours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.islands import folder_of, run, sweep, write_data, write_space
from support.made_up import FILE, census_of, registered
from typer.testing import CliRunner

from deftx.errors import ConfigError
from deftx.stages.kinds import KINDS
from deftx.stages.stage import Stage
from orchestrator.kinds import SHOWN
from orchestrator.plan.rows import Planner
from orchestrator.report.__main__ import app as report
from orchestrator.report.plots import time as time_plot
from orchestrator.report.times import read_times
from orchestrator.space.load import load_space
from orchestrator.tracking.content import SweepContent

ROWS = {"rank_l": [2], "rank_t": [2], "baselines": [], "source": None}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `tiny.yaml`, `data`, `results` and `said`: a sweep that counted the blocks of each text."""
    folder = tmp_path_factory.mktemp("made-up")
    write_data(folder / "data")
    resources = {"census": {"cpu": 1}, "dense": {"cpu": 1}}
    checks = Planner.checks

    def with_census(planner: Planner) -> list[Stage]:
        ours = checks(planner)
        return [*ours, *(census_of(planner._text(check.language)) for check in ours)]

    with registered(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Planner, "checks", with_census)
        space = write_space(folder / "tiny.yaml", **ROWS, resources=resources)
        plan = run(space, folder / "data", folder / "results", "--plan")
        (folder / "planned").write_text(plan.output, encoding="utf-8")
        done = run(space, folder / "data", folder / "results")
        assert (plan.exit_code, done.exit_code) == (0, 0), plan.output + done.output
        (folder / "said").write_text(done.output, encoding="utf-8")
        yield folder


def counts(output: str, kind: str) -> list[str]:
    """The cells of a kind's line in a table."""
    lines = [line.replace("│", " ").split() for line in output.splitlines() if "│" in line]
    return next(line[1:] for line in lines if line[0] == kind)


def addresses(swept: Path) -> list[str]:
    state = folder_of(swept / "results", "tiny").state()
    return [address for address, entry in state.stages.items() if entry.kind == "census"]


def test_it_is_planned_and_run(swept: Path) -> None:
    assert counts((swept / "planned").read_text(), "census") == ["2", "0"]
    store = folder_of(swept / "results", "tiny").store
    for address in addresses(swept):
        manifest = store.manifest(address)
        assert manifest is not None
        text = store.manifest(manifest.identity["inputs"]["text"])
        assert text is not None
        assert manifest.metrics == {"blocks": text.metrics["train_blocks"]}
        assert store.fetch(address, FILE).read_text() == f"{text.metrics['train_blocks']:.0f}\n"
    assert len(addresses(swept)) == 2


def test_it_is_shown_and_its_status_told(swept: Path) -> None:
    said = (swept / "said").read_text().splitlines()
    done = said.index(next(line for line in said if line.startswith("done    ila · census  ")))
    assert said[done + 1] == "        ila: counted"
    assert counts(sweep("status", "tiny", "--storage", swept / "results").output, "census") == ["2", "0", "0", "0"]


def test_it_is_mirrored(swept: Path) -> None:
    folder = folder_of(swept / "results", "tiny")
    state, info = folder.state(), folder.info()
    assert info is not None
    (address, _) = addresses(swept)
    content = SweepContent(folder, info).ended(address, state.stages[address], state, None)
    assert content is not None
    assert (content.name, content.status, content.tags["kind"]) == ("ila · census", "FINISHED", "census")
    assert content.tags["mlflow.note.content"] == "The blocks of ila, counted.\n\nila: counted"
    assert content.params == {"part": "train"}
    assert content.metrics["census/blocks counted"] > 0
    assert sorted(content.files) == [FILE, "details.json", "stage.json"]


def test_it_is_in_the_report(swept: Path) -> None:
    folder = folder_of(swept / "results", "tiny")
    times = read_times(folder.store, folder.state())
    assert list(times["kind"]).count("census") == 2
    figure = time_plot.time_plot(times)
    assert figure is not None
    assert any(text.get_text().startswith("census: ") for text in figure.legends[0].get_texts())
    assert (swept / "results/sweeps/tiny/plots/time.png").is_file()


def test_resources_name_it_while_it_is_known(swept: Path, tmp_path: Path) -> None:
    assert load_space(str(swept / "tiny.yaml"))[1].resources_of("census").cpu == 1
    space = write_space(tmp_path / "tiny.yaml", resources={"cencus": {"cpu": 1}})
    with pytest.raises(ConfigError, match=r"resources\.cencus.*unknown kind of stage 'cencus'.*'census'"):
        load_space(str(space))


def test_a_storage_with_a_kind_that_is_not_known_says_so(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(swept / "results", tmp_path / "results")
    monkeypatch.delitem(KINDS, "census")
    monkeypatch.delitem(SHOWN, "census")
    assert counts(sweep("status", "tiny", "--storage", tmp_path / "results").output, "census") == ["2", "0", "0", "0"]
    told = CliRunner().invoke(report, [str(tmp_path / "results/sweeps/tiny")])
    assert told.exit_code == 2
    assert "unknown kind of stage 'census'" in told.output
    assert "there are backbone, check, text, dense, sparse, grade, and those that a module registers" in told.output
