"""A notebook and a sweep build the same stages: what the one made, the other finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import world
from support.islands import attempts, published, sweep
from support.nusax_files import write_files
from support.tiny import write_backbone

import deftx
from deftx.config import RetentionOf
from deftx.notebook.stages import language_stage, task_stage
from deftx.sft.vector import SparseFineTuning
from deftx.stages.stage import Stage
from orchestrator.plan.inputs import resolve
from orchestrator.plan.rows import Planner
from orchestrator.space.combination import Combination
from orchestrator.space.load import load_space


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("nusax"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that reads as many tokens as the presets ask for."""
    return write_backbone(tmp_path_factory.mktemp("tiny") / "xlmr", max_position_embeddings=258)


def planner(data: Path, backbone: Path, *overrides: str, name: str = "nusax") -> Planner:
    smaller = [f"backbone={backbone}", "language.k=10%", "task.k=10%"]
    _, space = load_space(name, [*smaller, *overrides])
    return Planner(space, resolve(space, str(data)))


def row(plan: Planner, rank_l: str, rank_t: str, retention_of: RetentionOf = "numel") -> tuple[dict[str, Stage], Stage]:
    asked = Combination.read({"rank_l": rank_l, "rank_t": rank_t, "retention": 0.05}, retention_of)
    planned = plan.combination(0, asked)
    return planned.languages, planned.task


def test_the_addresses_are_those_of_the_space_nusax(data: Path, backbone: Path) -> None:
    languages, task = row(planner(data, backbone), "100", "90%")
    common: dict[str, Any] = {"backbone": backbone, "k": "10%", "precision": "bf16"}
    for code in ("ace", "ban", "bjn", "mad", "min"):
        ours = language_stage(data / "corpora" / f"{code}.txt", **common)
        assert ours.identity() == languages[code].identity()
        assert ours.address == languages[code].address
    source = language_stage(data / "corpora" / "id.txt", **common)
    ours = task_stage("nusax", source=source, data_root=data, rank="90%", **common)
    assert [stage.address for _, stage in ours.inputs] == [stage.address for _, stage in task.inputs]
    assert ours.address == task.address
    dense = dict(ours.inputs)["dense"]
    assert dense.inputs == (("start", source),)
    data_of_it = dense.settings.task  # type: ignore[attr-defined]
    assert set(data_of_it.training) == {"train", "valid"}
    assert data_of_it.evaluation_texts is not None, "what rows are compared with counts"


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        (["preset=lt-sft"], {"preset": "lt-sft"}),
        (["seed=3"], {"seed": 3}),
        (["language.training.max_steps=5", "task.training.max_steps=5"], {"max_steps": 5}),
        (["language.retrain=false", "task.retrain=false"], {"retrain": False}),
        (["leaks=none"], {"leaks": "none"}),
        (["retention_of=nonzero"], {"retention_of": "nonzero"}),
        (["leaks=lt-sft"], {"leaks": "lt-sft"}),
    ],
)
def test_a_setting_is_a_spaces(data: Path, backbone: Path, overrides: list[str], settings: dict[str, Any]) -> None:
    plan = planner(data, backbone, "source=null", *overrides)
    languages, task = row(plan, "100", "100", settings.get("retention_of", "numel"))
    common: dict[str, Any] = {"backbone": backbone, "k": "10%", "precision": "bf16", **settings}
    assert task_stage("nusax", data_root=data, **common).address == task.address
    common.pop("leaks", None)
    assert language_stage(data / "corpora/ace.txt", **common).address == languages["ace"].address


def test_settings_of_one_kind_and_lt_sft_and_a_donor_of_the_head(data: Path, backbone: Path) -> None:
    plan = planner(data, backbone, "source=null", "language.text.block=64", "task.max_rows=9", f"lm_head={backbone}")
    lt_sft = next(planned for planned in plan.baselines() if planned.kind == "lt-sft")
    common: dict[str, Any] = {"backbone": backbone, "k": "10%", "precision": "bf16", "rank": None}
    ours = language_stage(data / "corpora/ban.txt", block=64, lm_head=backbone, **common)
    assert ours.address == lt_sft.languages["ban"].address
    assert task_stage("nusax", data_root=data, max_rows=9, **common).address == lt_sft.task.address


def test_tables_of_ones_own_are_those_of_a_spaces_benchmark(data: Path, backbone: Path) -> None:
    reviews, labels = data / "reviews" / "id", ["negative", "neutral", "positive"]
    for language in ("id", "gay"):
        (data / "reviews" / language).mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid", "test"):
        rows = "text,label\n" + "".join(f"{split} {n},{labels[n % 3]}\n" for n in range(9))
        for language in ("id", "gay"):
            (data / "reviews" / language / f"{split}.csv").write_text(rows)
    (data / "corpora/gay.txt").write_text((data / "corpora/ace.txt").read_text())
    own = f"benchmark={{name: reviews, labels: {labels}, source_language: id}}"
    _, task = row(planner(data, backbone, own, "targets=[gay]", "source=null"), "100", "100")
    ours = task_stage(
        "reviews", train=reviews / "train.csv", valid=reviews / "valid.csv", labels=labels, language="id",
        backbone=backbone, k="10%", precision="bf16",
    )  # fmt: skip
    assert ours.address == task.address


TRAINING: dict[str, Any] = {
    "epochs": None, "max_steps": 8, "batch_size": 4, "learning_rate": 5e-3, "validate_every": 4,
}  # fmt: skip
TEXT: dict[str, Any] = {"block": 12, "valid_fraction": 0.2}
SPACE: dict[str, Any] = {
    "benchmark": "nusax", "targets": ["ace"], "preset": "lt-sft", "source": {"learn": {"rank": 4}},
    "language": {"text": TEXT, "k": "20%", "training": TRAINING},
    "task": {"k": "20%", "max_length": 16, "training": TRAINING}, "rank_l": [2], "rank_t": [2], "baselines": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NusaX in the words of the tiny backbone."""
    return world.write_files(tmp_path_factory.mktemp("small"))


def learn_all(small: Path, backbone: Path, storage: Path) -> tuple[SparseFineTuning, SparseFineTuning]:
    """(ace, task): the vectors of the space above, and that of Indonesian where the task starts."""
    common: dict[str, Any] = {"backbone": backbone, "store": storage, "preset": "lt-sft", "k": "20%", **TRAINING}
    source = deftx.learn_language(small / "corpora/id.txt", rank=4, **TEXT, **common)
    ace = deftx.learn_language(small / "corpora/ace.txt", rank=2, **TEXT, **common)
    return ace, deftx.learn_task("nusax", source=source, data_root=small, rank=2, max_length=16, **common)


def search_all(small: Path, backbone: Path, folder: Path) -> None:
    space = folder / "tiny.yaml"
    space.write_text(yaml.safe_dump({**SPACE, "backbone": str(backbone)}), encoding="utf-8")
    result = sweep(space, "--data-root", small, "--storage", folder / "storage", "--serial")
    assert result.exit_code == 0, result.output


def test_what_a_notebook_learns_a_sweep_does_not_make_again(small: Path, backbone: Path, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    ace, task = learn_all(small, backbone, storage)
    before = attempts(storage)
    assert len(before) == 2 * 3 + 2, "text, dense and sparse of two languages, dense and sparse of the task"
    search_all(small, backbone, tmp_path)
    after = attempts(storage)
    assert {address: after[address] for address in before} == before
    kinds = [manifest(storage, address)["kind"] for address in after.keys() - before.keys()]
    assert sorted(kinds) == ["check", "check", "grade"]

    (graded,) = (address for address in after if manifest(storage, address)["kind"] == "grade")
    ours = deftx.grade(deftx.compose(backbone, task, ace), small / "nusax/acehnese/valid.csv")
    assert ours.value == pytest.approx(manifest(storage, graded)["metrics"]["valid_macro_f1"], abs=1e-12)


def test_what_a_sweep_made_a_notebook_finds(small: Path, backbone: Path, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    search_all(small, backbone, tmp_path)
    before = attempts(storage)
    vectors = learn_all(small, backbone, storage)
    assert attempts(storage) == before
    assert {sft.stage.address for sft in vectors if sft.stage} <= published(storage)
    assert vectors[1].metadata.max_length == 16


def manifest(storage: Path, address: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((storage / "stages" / address / "manifest.json").read_text())
    return content
