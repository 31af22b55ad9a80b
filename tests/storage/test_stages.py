"""Stages as data: what counts in an address, what does not, and the order they are walked in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from deftx.config import Denoise, Settings, TextSettings, Training
from deftx.sources.files import FileSource
from deftx.sources.hub import HubSource
from deftx.sources.published import HubFolder, LocalFolder
from deftx.stages.kinds import KINDS, checked_text
from deftx.stages.settings import (
    BackboneSettings,
    CheckSettings,
    DenseSettings,
    GradeSettings,
    SparseSettings,
    TaskData,
    TextStageSettings,
)
from deftx.stages.stage import Stage, walk


def file(digit: str = "0", url: str = "file.txt") -> FileSource:
    return FileSource(sha256=digit * 64, url=url)


TRAINING = Training(max_steps=10)
BACKBONE = Stage(
    "backbone",
    BackboneSettings(texts=(("mer", file("1")),), tokenizer_texts=(("ila", file("2")),), training=TRAINING, seed=0),
)
TEXT = Stage(
    "text", TextStageSettings(language="ila", source=file("3"), text=TextSettings(), backbone=None, seed=0),
    (("backbone", BACKBONE),),
)  # fmt: skip
CHECK = Stage(
    "check",
    CheckSettings(
        language="ila", source=file("3"), text=TextSettings(), backbone=None, seed=0, training=TRAINING,
        benchmark="archipelago", evaluation={"valid": file("6"), "test": file("7")},
    ),
    (("backbone", BACKBONE),),
)  # fmt: skip
DENSE = Stage(
    "dense", DenseSettings(language="ila", task=None, backbone=None, training=TRAINING, seed=0),
    (("backbone", BACKBONE), ("text", TEXT)),
)  # fmt: skip
SPARSE = Stage("sparse", SparseSettings(denoise=Denoise(rank=8), k=100), (("dense", DENSE),))
TASK_DATA = TaskData(
    benchmark="archipelago", training={"train": (file("4"),), "valid": (file("5"),)}, leaks="none",
    evaluation_texts="d" * 64, evaluation={"valid": file("6")}, max_length=32,
)  # fmt: skip
TASK_DENSE = Stage(
    "dense", DenseSettings(language="sor", task=TASK_DATA, backbone=None, training=TRAINING, seed=0),
    (("backbone", BACKBONE),),
)  # fmt: skip
TASK = Stage("sparse", SparseSettings(denoise=Denoise(rank="90%"), k="10%"), (("dense", TASK_DENSE),))
GRADE = Stage(
    "grade", GradeSettings(language="ila", benchmark="archipelago", valid=file("6"), test=file("7"), max_length=32),
    (("task", TASK), ("language", SPARSE)),
)  # fmt: skip
EVERY = {
    "backbone": BACKBONE, "check": CHECK, "text": TEXT, "dense": DENSE, "task": TASK_DENSE, "sparse": SPARSE,
    "grade": GRADE,
}  # fmt: skip


def changed(stage: Stage, **changes: Any) -> Stage:
    return Stage(stage.kind, stage.settings.model_copy(update=changes), stage.inputs)


def test_an_address_is_the_hash_of_kind_version_settings_and_inputs() -> None:
    identity = {
        "kind": "sparse",
        "version": 3,
        "settings": {"denoise": {"rank": "8", "retention": 0.05, "retention_of": "numel"}, "k": 100, "retrain": True},
        "inputs": {"dense": DENSE.address},
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    assert SPARSE.address == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_the_address_of_a_stage_written_by_hand_is_golden() -> None:
    """Where this fails, results in every store are lost: raise the kind's version and say so in the changelog."""
    assert TEXT.address == "11c9f079f1b45921799b6a56046c2d2d"


CHANGES: dict[str, list[dict[str, Any]]] = {
    "backbone": [
        {"vocabulary": 1800}, {"layers": 3}, {"hidden": 64}, {"heads": 2}, {"feed_forward": 128}, {"init": 0.02},
        {"block": 64}, {"pack": True}, {"mask_share": 0.15}, {"seed": 1}, {"texts": (("mer", file("9")),)},
        {"texts": (("nub", file("1")),)}, {"tokenizer_texts": ()},
    ],
    "check": [
        {"language": "vek"}, {"source": file("9")}, {"text": TextSettings(block=128)}, {"seed": 1}, {"evaluation": {}},
        {"backbone": HubFolder(repo="tiny", commit="1" * 40)}, {"benchmark": "nusax"},
        {"evaluation": {"valid": file("6"), "test": file("9")}}, {"evaluation": {"test": file("7")}},
    ],
    "text": [
        {"language": "vek"}, {"source": file("9")}, {"text": TextSettings(block=128)},
        {"text": TextSettings(pack=False)},
        {"text": TextSettings(valid_fraction=0.1)}, {"text": TextSettings(max_lines=9)}, {"seed": 1},
        {"backbone": HubFolder(repo="tiny", commit="1" * 40)},
        {"source": HubSource(repo="wiki", commit="1" * 40, config="ila", split="train")},
    ],
    "dense": [
        {"language": "vek"}, {"seed": 1}, {"lm_head": "random"}, {"start": HubFolder(repo="sor", commit="1" * 40)},
        {"lm_head": HubFolder(repo="donor", commit="1" * 40)}, {"task": TASK_DATA},
    ],
    "task": [
        {"task": TASK_DATA.model_copy(update=change)}
        for change in (
            {"benchmark": "nusax"}, {"leaks": "strict"}, {"max_length": 64}, {"max_rows": 5},
            {"evaluation_texts": "e" * 64},
            {"training": {"train": (file("9"),), "valid": (file("5"),)}},
        )
    ],
    "sparse": [
        {"denoise": None}, {"denoise": Denoise(rank=9)}, {"denoise": Denoise(rank="8%")}, {"k": "100%"}, {"k": None},
        {"denoise": Denoise(rank=8, retention=0)}, {"denoise": Denoise(rank=8, retention_of="nonzero")}, {"k": 101},
        {"retrain": False},
    ],
    "grade": [
        {"language": "vek"}, {"benchmark": "nusax"}, {"valid": file("9")}, {"test": file("9")}, {"max_length": 64},
        {"weights": (1.0, 0.5)}, {"weights": (0.5, 1.0)}, {"vector": HubFolder(repo="ila", commit="1" * 40)},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_each_setting_that_counts_gives_an_address_of_its_own(name: str) -> None:
    stages = [EVERY[name], *(changed(EVERY[name], **change) for change in CHANGES[name])]
    assert len({stage.address for stage in stages}) == len(stages)


TRAINING_CHANGES: dict[str, Any] = {
    "epochs": 3, "max_steps": 11, "min_steps": 5, "batch_size": 16, "learning_rate": 1e-4, "warmup": 0.1,
    "weight_decay": 0.01, "betas": (0.9, 0.98), "clip": 2.0, "l1": 0.1, "l1_gradient": False, "validate_every": 7,
    "dropout": 0.0, "freeze_embeddings": True, "freeze_lm_head": True, "precision": "tf32",
}  # fmt: skip


@pytest.mark.parametrize("stage", [BACKBONE, CHECK, DENSE], ids=["backbone", "check", "dense"])
def test_every_training_setting_counts_precision_included(stage: Stage) -> None:
    assert set(TRAINING_CHANGES) == set(Training.model_fields)
    variants = [TRAINING.model_copy(update={name: value}) for name, value in TRAINING_CHANGES.items()]
    assert len({changed(stage, training=t).address for t in [TRAINING, *variants]}) == len(variants) + 1


def test_every_field_of_every_kind_is_changed_above_or_does_not_count() -> None:
    silent = {
        "backbone": {"training"},
        "check": {"training"},
        "dense": {"training", "backbone"},
        "task": {"evaluation"},
    }
    for name, changes in CHANGES.items():
        settings: Settings = TASK_DATA if name == "task" else EVERY[name].settings
        touched = {key for change in changes for key in _touched(name, change)}
        assert touched | silent.get(name, set()) == set(type(settings).model_fields), name


def _touched(name: str, change: dict[str, Any]) -> set[str]:
    if name != "task":
        return set(change)
    return {key for key in TaskData.model_fields if getattr(change["task"], key) != getattr(TASK_DATA, key)}


def test_where_things_lie_and_what_they_are_called_do_not_count() -> None:
    local = [LocalFolder(sha256="a" * 64, path=path) for path in ("/here", "/there")]
    same = [
        (TEXT, {"source": file("3", "s3://elsewhere/ila.txt")}),
        (BACKBONE, {"name": "archipelago 0"}),
        (BACKBONE, {"texts": (("mer", file("1", "elsewhere.txt")),)}),
        (TASK_DENSE, {"task": TASK_DATA.model_copy(update={"evaluation": {"test": file("8", "other.csv")}})}),
        (GRADE, {"valid": file("6", "elsewhere.csv"), "test": file("7", "elsewhere.csv")}),
    ]
    for stage, change in same:
        assert changed(stage, **change).address == stage.address
    assert changed(TEXT, backbone=local[0]).address == changed(TEXT, backbone=local[1]).address != TEXT.address


def test_equal_settings_spelled_differently_are_one_address() -> None:
    for spelled in ({"rank": 8, "retention": "0.05"}, {"rank": "08 ", "retention": 5e-2}):
        settings = SparseSettings(denoise=Denoise(**spelled), k="1_00")  # type: ignore[arg-type]
        assert Stage("sparse", settings, SPARSE.inputs).address == SPARSE.address
    one, other = (Training(max_steps=10, clip=clip) for clip in (1, 1.0))
    assert changed(DENSE, training=one).address == changed(DENSE, training=other).address


def test_a_changed_input_a_role_and_a_raised_version_change_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    deeper = Stage("text", TEXT.settings, (("backbone", changed(BACKBONE, seed=1)),))
    dense = Stage("dense", DENSE.settings, (("backbone", BACKBONE), ("text", deeper)))
    before = {TEXT.address, DENSE.address, SPARSE.address}
    after = {deeper.address, dense.address, Stage("sparse", SPARSE.settings, (("dense", dense),)).address}
    assert not before & after
    assert Stage("sparse", SPARSE.settings, (("other", DENSE),)).address != SPARSE.address
    monkeypatch.setitem(KINDS, "sparse", replace(KINDS["sparse"], version=KINDS["sparse"].version + 1))
    assert Stage("sparse", SPARSE.settings, SPARSE.inputs).address != SPARSE.address


def test_a_check_knows_the_text_stage_whose_text_it_looks_over() -> None:
    assert checked_text(CHECK).address == TEXT.address != CHECK.address


def test_the_seed_follows_from_the_address() -> None:
    assert SPARSE.seed == int(SPARSE.address[:15], 16) < 2**60
    assert len({stage.seed for stage in EVERY.values()}) == len(EVERY)


def test_a_walk_gives_inputs_first_and_each_stage_once() -> None:
    twin = Stage("grade", GRADE.settings, GRADE.inputs)
    found = list(walk([GRADE, SPARSE, twin]))
    assert [stage.address for stage in found] == [
        stage.address for stage in (BACKBONE, TASK_DENSE, TASK, TEXT, DENSE, SPARSE, GRADE)
    ]
    done: set[str] = set()
    for stage in found:
        assert all(needed.address in done for _, needed in stage.inputs)
        done.add(stage.address)


def test_labels_are_what_a_person_calls_them() -> None:
    bare = Stage("sparse", SparseSettings(denoise=None, k=None, retrain=False), (("dense", DENSE),))
    published = changed(GRADE, vector=HubFolder(repo="v", commit="1" * 40))
    alone = Stage("grade", published.settings, GRADE.inputs[:1])
    assert [stage.label for stage in (BACKBONE, CHECK, TEXT, DENSE, TASK_DENSE, SPARSE, TASK, bare, GRADE, alone)] == [
        "backbone",
        "ila · check",
        "ila · text",
        "ila · dense",
        "task · dense",
        "ila · sparse · rank 8 · retention 5 %",
        "task · sparse · rank 90% · retention 5 %",
        "ila · sparse · LT-SFT · not retrained · not pruned",
        "ila · grade · task rank 90% retention 5 % + ila rank 8 retention 5 %",
        "ila · grade · task rank 90% retention 5 % + published vector",
    ]
    assert (SPARSE.language, SPARSE.subject, TASK.language, TASK.subject) == ("ila", "ila", "sor", "task")
