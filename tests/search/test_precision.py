"""`precision: auto` is decided by the space alone, before there is a stage; bf16 is left to no CPU that lacks it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.islands import SPACE, TRAINING, sweep, write_data, write_space
from support.plans import BACKBONE, FILE, make_planner, make_space

from deftx import hardware
from deftx.config import TaskRecipe, TextSettings, Training
from deftx.data.inputs import TaskInputs
from deftx.errors import ConfigError
from deftx.stages.build import check_stage, dense_language, dense_task, text_stage
from deftx.stages.settings import BackboneSettings
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from orchestrator.record.sweep import Failure, SweepFolder
from orchestrator.run import session
from orchestrator.run.machine import Machine
from orchestrator.run.preview import Preview
from orchestrator.space.load import load_space, shipped_spaces
from orchestrator.space.schema import Pretraining, Space

ON_GPU = {"dense": {"gpu": 1}, "sparse": {"gpu": 0.5}}
ASKS = "warning: the space asks for a GPU for dense, sparse; there is none here, so they run on the CPU"
LAPTOP, NODE = Machine(cpus=2, gpus=0), Machine(cpus=8, gpus=1)


def auto(**changes: Any) -> dict[str, Any]:
    """The tiny space with every precision left to it."""
    training = {**TRAINING, "precision": "auto"}
    return {**{part: {**SPACE[part], "training": training} for part in ("backbone", "language", "task")}, **changes}


def precisions(space: Space) -> tuple[str, ...]:
    trained = [space.language, space.task, *([space.backbone] if isinstance(space.backbone, Pretraining) else [])]
    return tuple(part.training.precision for part in trained)


@pytest.mark.parametrize("name", shipped_spaces())
def test_the_shipped_spaces_that_ask_for_gpus_train_in_bf16_and_the_others_in_float32(name: str) -> None:
    space = load_space(name)[1]
    assert set(precisions(space)) == {"bf16" if space.resources else "float32"}
    without = load_space(name, ["resources={}"])[1]
    assert set(precisions(without)) == {"float32"}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, ("float32", "float32", "float32")),
        (ON_GPU, ("bf16", "bf16", "float32")),
        ({"dense": {"gpu": 1}}, ("float32", "float32", "float32")),
        ({"sparse": {"gpu": 1}, "grade": {"gpu": 1}}, ("float32", "float32", "float32")),
        ({**ON_GPU, "backbone": {"gpu": 1}}, ("bf16", "bf16", "bf16")),
    ],
)
def test_auto_is_bf16_where_all_stages_that_share_a_training_ask_for_a_gpu(
    tmp_path: Path, resources: dict[str, Any], expected: tuple[str, ...]
) -> None:
    path = write_space(tmp_path / "space.yaml", **auto(resources=resources))
    assert precisions(load_space(str(path))[1]) == expected


def test_what_was_asked_for_is_not_decided_over(tmp_path: Path) -> None:
    path = write_space(tmp_path / "space.yaml", **auto(resources=ON_GPU))
    space = load_space(str(path), ["task.training.precision=tf32"])[1]
    assert precisions(space) == ("bf16", "tf32", "float32")
    assert Space.model_validate(space.model_dump(mode="json")) == space


def test_a_decided_space_has_the_addresses_of_one_that_says_the_precision() -> None:
    def addresses(space: Space) -> set[str]:
        stages = make_planner(space).combination(0, space.cells()[0]).stages
        return {stage.address for stage in stages if stage.kind != "text"}

    def of(precision: str, **settings: Any) -> Space:
        recipe = {"training": {"max_steps": 10, "precision": precision}, "k": "10%"}
        return make_space(language=recipe, task=recipe, **settings)

    on_gpu, on_cpu = of("auto", resources=ON_GPU), of("auto")
    assert addresses(on_gpu) == addresses(of("bf16"))
    assert addresses(on_cpu) == addresses(make_space())
    assert not addresses(on_gpu) & addresses(on_cpu)


def test_no_stage_is_built_before_its_precision_is_decided() -> None:
    undecided = Training(precision="auto")
    text = text_stage("ace", FILE, TextSettings(), BACKBONE, 0)
    task = TaskInputs({"train": (FILE,), "valid": (FILE,)}, "strict", {}, "0")
    builds = [
        lambda: check_stage(text, undecided, "nusax", {}),
        lambda: dense_language(text, undecided),
        lambda: dense_task("nusax", task, TaskRecipe(training=undecided), BACKBONE, None, 0),
        lambda: Stage("backbone", BackboneSettings(texts=(), tokenizer_texts=(), seed=0, training=undecided)),
    ]
    for build in builds:
        with pytest.raises(ValidationError, match="precision: auto has to be decided before a stage is built"):
            build()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def told(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the command says, and its exit code, of the tiny space on GPUs; on a laptop without GPU and bf16."""
    path = write_space(tmp_path / "tiny.yaml", **auto(resources=ON_GPU))
    monkeypatch.setattr(hardware, "gpus", lambda: 0)
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: False)
    monkeypatch.setattr(Machine, "here", lambda: LAPTOP)

    def command(*options: object) -> tuple[int, str]:
        result = sweep(path, "--data-root", data, "--storage", tmp_path / "storage", *options)
        return result.exit_code, " ".join(result.output.split())

    return command


REFUSED = (
    "precision: bf16 for dense, sparse, which would run on the CPU here; it has no bf16 instructions, without which "
    "bf16 is 23 to 60 times slower than float32 (measured): set language.training.precision=float32 and "
    "task.training.precision=float32, or run where there is a GPU "
    "(for a cluster, plan and run with --address)"
)


@pytest.mark.parametrize("how", ["--plan", "--serial"])
def test_bf16_on_a_cpu_without_it_is_refused_before_anything_runs(told: Any, tmp_path: Path, how: str) -> None:
    code, said = told(how)
    assert code == 2
    assert said.count(ASKS) == 1
    assert said.endswith(REFUSED)
    assert not (tmp_path / "storage").exists()


def test_a_task_in_bf16_is_refused_by_name_where_the_languages_are_in_float32(told: Any) -> None:
    code, said = told("--serial", "--set", "language.training.precision=float32")
    assert code == 2
    assert "(measured): set task.training.precision=float32, or run where" in said
    assert "language.training" not in said


def test_the_plan_stands_before_its_refusal_and_says_the_precision(told: Any) -> None:
    _, said = told("--plan")
    assert "4 dense and 7 sparse trainings for 4 combinations" in said
    precision = "precision: backbone float32, language vectors bf16, task vectors bf16"
    assert said.index(precision) < said.index(REFUSED)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (["--set", "language.training.precision=float32", "--set", "task.training.precision=float32"], 1),
        (["--set", "resources={}"], 0),
        (["--address", "auto"], 0),
    ],
    ids=["float32", "no GPU asked for", "a cluster"],
)
def test_a_plan_is_not_refused_for_float32_nor_for_the_workers_of_a_cluster(
    told: Any, options: list[str], warned: int
) -> None:
    code, said = told("--plan", *options)
    assert (code, said.count("warning: "), said.count("23 to 60")) == (0, warned, 0)


def test_a_machine_with_a_gpu_or_with_bf16_is_planned_on_without_a_word(
    told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: 1)
    code, said = told("--plan")
    assert (code, "warning" in said) == (0, False)
    monkeypatch.setattr(hardware, "gpus", lambda: 0)
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: True)
    code, said = told("--plan")
    assert (code, said.count(ASKS)) == (0, 1)


def test_only_what_is_still_to_be_trained_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: False)
    recipe = {"training": {"max_steps": 10, "precision": "bf16"}, "k": "10%"}
    space = make_space(language=recipe, resources=ON_GPU)
    row = make_planner(space).combination(0, space.cells()[0])
    NODE.check_precision(space, row.stages)
    LAPTOP.check_precision(space, [*row.grades.values(), row.task])
    assert LAPTOP.lacks_gpu_for(space, row.grades.values()) == []
    with pytest.raises(
        ConfigError, match=r"^precision: bf16 for sparse, .* set language\.training\.precision=float32, "
    ):
        LAPTOP.check_precision(space, [row.languages["ace"], row.task])
    on_cpu = space.model_copy(update={"resources": {}})
    with pytest.raises(ConfigError, match=r"^precision: bf16 for dense, sparse, .*=float32, or run this elsewhere$"):
        NODE.check_precision(on_cpu, row.stages)


def test_a_sweep_keeps_what_was_decided(tmp_path: Path, data: Path) -> None:
    title, space = load_space(str(write_space(tmp_path / "tiny.yaml", **auto(resources=ON_GPU))))
    folder = SweepFolder(Store(str(tmp_path / "storage")), title)
    with session.held(session.prepare(title, space, folder, str(data))):
        pass
    info = folder.info()
    assert info is not None
    kept = [info.space[part]["training"]["precision"] for part in ("language", "task", "backbone")]
    assert kept == ["bf16", "bf16", "float32"]


BF16 = ("--set", "language.training.precision=bf16")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The storage of a sweep that trained in float32 what a GPU was asked for: one combination, no baselines."""
    storage = tmp_path_factory.mktemp("finished")
    space = write_space(storage / "tiny.yaml", resources=ON_GPU, combinations=1, baselines=[])
    result = sweep(space, "--data-root", data, "--storage", storage, "--serial")
    assert result.exit_code == 0, result.output
    return storage


@pytest.fixture
def storage(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def again(storage: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the command says of that sweep, and its exit code, on a laptop without GPU and bf16."""
    monkeypatch.setattr(hardware, "gpus", lambda: 0)
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: False)
    monkeypatch.setattr(Machine, "here", lambda: LAPTOP)

    def command(*options: str) -> tuple[int, str]:
        result = sweep(storage / "tiny.yaml", "--data-root", data, "--storage", storage, *options)
        return result.exit_code, " ".join(result.output.split())

    return command


def contents(storage: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in storage.rglob("*") if path.is_file()}


def test_only_the_kinds_of_which_some_are_to_be_made_want_a_gpu(again: Any) -> None:
    for how in ("--plan", "--serial"):
        code, said = again(how)
        assert (code, "warning" in said) == (0, False), said
    code, said = again("--plan", "--set", "baselines=[lt-sft]")
    assert "for 1 combinations; baselines: 0 dense and 3 sparse trainings more" in said
    assert (code, said.count("warning: the space asks for a GPU for sparse; there is none here")) == (0, 1)


def test_a_sweep_that_goes_on_in_another_precision_says_so_in_a_line(again: Any) -> None:
    told = (
        "warning: this sweep had precision backbone float32, language vectors float32, task vectors float32: what "
        "trains in another precision now is trained again, under other addresses"
    )
    for how in ("--plan", "--serial"):
        assert again(how, *BF16)[1].count(told) == 1
        assert told not in again(how)[1]


def test_a_refused_start_leaves_every_record_of_a_sweep_as_it_was(again: Any, storage: Path) -> None:
    folder = SweepFolder(Store(str(storage)), "tiny")
    folder.write_failure(Failure(address="0" * 32, label="a stage", reason="the disk hiccuped", final=True))
    before = contents(storage)
    for options in ((), ("--retry-failed",)):
        code, said = again("--serial", *BF16, *options)
        assert (code, "set language.training.precision=float32" in said) == (2, True)
        assert contents(storage) == before


def test_a_failure_in_bf16_is_refused_only_where_it_is_to_be_tried_again(again: Any, storage: Path, data: Path) -> None:
    title, space = load_space(str(storage / "tiny.yaml"), BF16[1:])
    folder = SweepFolder(Store(str(storage)), title)
    search = Preview.of(session.prepare(title, space, folder, str(data))).search
    for stage in search:
        if stage.kind == "dense":
            folder.write_failure(Failure(address=stage.address, label=stage.label, reason="no GPU", final=True))
    assert len(folder.failures()) == 4
    assert again("--serial", *BF16, "--retry-failed")[0] == 2
    assert len(folder.failures()) == 4
    assert again("--serial", *BF16)[0] == 3
