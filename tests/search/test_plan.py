"""From a space to stages: counts worked by hand, what is shared, and the addresses of the shipped spaces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.later import LaterDense, LaterSparse, later
from support.nusax_files import write_files
from support.plans import make_planner, make_space

from deftx.data.archipelago import write_family
from deftx.sources import files as sources
from deftx.sources.revisions import Revisions, pinned_revisions
from deftx.stages.stage import Stage, walk
from orchestrator.plan.inputs import resolve
from orchestrator.plan.rows import Planner
from orchestrator.space.load import load_space, shipped_spaces

GOLDEN = Path(__file__).parents[1] / "golden_addresses.json"


# of AmericasNLI's languages these three have a Wikipedia; the others need a data root
ON_LINE = {"americasnli": ["targets=[aym,gn,quy]"], "americasnli-minilm": ["targets=[aym,gn]"]}


class Answers(dict[str, str]):
    """A hub that has everything at one commit."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        return "0" * 40


def shipped_planner(name: str, folder: Path, *overrides: str) -> Planner:
    _, space = load_space(name, overrides or ON_LINE.get(name, ()))
    root = None
    if space.benchmark == "archipelago":
        root = str(folder)
        write_family(root, space.seed)
    elif not isinstance(space.backbone, str):
        root = str(write_files(folder))
    with pinned_revisions(Revisions(Answers())):
        return Planner(space, resolve(space, root))


def stages_of(planner: Planner, name: str, *overrides: str) -> list[Stage]:
    _, space = load_space(name, overrides or ON_LINE.get(name, ()))
    cells = space.cells()[:4] if space.search == "tpe" else space.cells()
    rows = [planner.combination(number, cell) for number, cell in enumerate(cells)]
    rows += planner.baselines() + planner.controls(cells[0])
    return list(walk(grade for row in rows for grade in row.grades.values()))


@pytest.mark.parametrize(
    ("override", "dense", "sparse", "combinations"),
    [("seed=0", 6, 12, 4), ("rank_l=[100,200,90%]", 6, 17, 6), ("targets=[ace,ban,bjn,mad]", 5, 10, 4)],
)
def test_table_2_shares_its_stages(tmp_path: Path, override: str, dense: int, sparse: int, combinations: int) -> None:
    planner, (_, space) = shipped_planner("nusax-table2", tmp_path, override), load_space("nusax-table2", [override])
    rows = [planner.combination(number, cell) for number, cell in enumerate(space.cells())]
    stages = list(walk(grade for row in rows for grade in row.grades.values()))
    assert [sum(stage.kind == kind for stage in stages) for kind in ("dense", "sparse")] == [dense, sparse]
    assert len(rows) == combinations
    assert sum(stage.kind == "grade" for stage in stages) == combinations * len(space.targets)


def test_lt_sft_shares_dense_stages_training_and_k_and_differs_in_denoising_alone() -> None:
    space = make_space()
    planner = make_planner(space)
    ours, theirs = planner.combination(0, space.cells()[0]), next(r for r in planner.baselines() if r.kind == "lt-sft")
    for one, other in ((ours.task, theirs.task), (ours.languages["ace"], theirs.languages["ace"])):
        assert one.inputs == other.inputs
        assert one.settings.model_copy(update={"denoise": None}) == other.settings


def test_no_address_depends_on_how_a_trial_keeps_to_its_memory(tmp_path: Path) -> None:
    careful = "resources={dense: {cpu: 3, micro_batch: 2, gradient_checkpointing: true}}"
    plain, other = (
        {stage.address for stage in stages_of(shipped_planner("demo", tmp_path, *overrides), "demo", *overrides)}
        for overrides in ((), (careful,))
    )
    assert plain == other


def test_every_address_depends_on_the_seed() -> None:
    rows = [make_planner(make_space(seed=seed)).combination(0, make_space().cells()[0]) for seed in (0, 1)]
    first, second = ({stage.address for stage in row.stages} for row in rows)
    assert not first & second


def test_the_test_split_is_in_no_address_but_those_of_grades() -> None:
    space = make_space()
    planner, other = make_planner(space), make_planner(space)
    changed = sources.FileSource(sha256="f" * 64, url="somewhere")
    for language in ("ace", "ban"):
        other._resolved.evaluation[language, "test"] = changed
    other._resolved.task.evaluation["test"] = changed  # type: ignore[index]
    one, two = planner.combination(0, space.cells()[0]), other.combination(0, space.cells()[0])
    assert one.task.address == two.task.address
    assert {t: s.address for t, s in one.languages.items()} == {t: s.address for t, s in two.languages.items()}
    assert one.grades["ace"].address != two.grades["ace"].address


def test_the_source_vector_is_where_the_task_starts_and_a_baseline_of_its_own() -> None:
    space = make_space(source={"learn": {"rank": 4, "retention": 0.05}})
    planner = make_planner(space)
    start = planner.combination(0, space.cells()[0]).task.inputs[0][1].input("start")
    row = next(row for row in planner.controls(space.cells()[0]) if row.kind == "task+source")
    assert start is not None
    assert start.language == "id"
    assert {stage.address for stage in row.languages.values()} == {start.address}


def test_without_a_source_vector_there_is_no_such_baseline() -> None:
    space = make_space()
    planner = make_planner(space)
    assert [row.kind for row in planner.baselines()] == ["lt-sft", "dense-task"]
    assert [row.kind for row in planner.controls(space.cells()[0])] == ["task"]


def test_controls_have_the_chosen_vectors_and_lack_the_right_language_vector_alone() -> None:
    space = make_space(baselines=["task", "other-language"])
    planner, cell = make_planner(space), space.cells()[2]
    chosen = planner.combination(2, cell)
    task, other = planner.controls(cell)
    assert task.task == other.task == chosen.task
    assert not task.languages
    assert {target: stage.language for target, stage in other.languages.items()} == {"ace": "ban", "ban": "ace"}
    assert other.languages["ace"] == chosen.languages["ban"]


@pytest.mark.parametrize("name", shipped_spaces())
def test_shipped_spaces_have_the_golden_addresses(tmp_path: Path, name: str) -> None:
    """Changing one needs a raised version in `deftx.stages.stage` (or a changed space) and a line in CHANGELOG."""
    planner = shipped_planner(name, tmp_path)
    found = {stage.label.replace(" retention ", " keep "): stage.address for stage in stages_of(planner, name)}
    assert found == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


def test_settings_that_have_grown_have_the_golden_addresses(tmp_path: Path) -> None:
    stages = stages_of(shipped_planner("nusax-table2", tmp_path), "nusax-table2")
    grown = {stage.label.replace(" retention ", " keep "): later(stage) for stage in stages}
    assert sum(isinstance(stage.settings, LaterDense | LaterSparse) for stage in grown.values()) > 10
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["nusax-table2"]
    assert {label: stage.address for label, stage in grown.items()} == golden
    assert [stage.identity() for stage in grown.values()] == [stage.identity() for stage in stages]
