"""What stages measured, typed: written as numbers by name, read again, by older names too, and never half."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from pydantic import ValidationError
from support.facts import metrics_of
from support.sweep_by_hand import grade_stage, sparse_stage

from deftx.errors import StoreError
from deftx.stages.facts import DenseFacts, GradeFacts, SparseFacts, TrainingFacts
from deftx.stages.kinds import facts_of
from deftx.stages.manifest import Manifest
from deftx.stages.stage import Stage

SPARSE = sparse_stage("ace", "8")
DENSE = SPARSE.needed("dense")
GRADE = grade_stage("ace", sparse_stage("task", "8"), None)


def manifest(stage: Stage, metrics: dict[str, float]) -> Manifest:
    return Manifest(
        address=stage.address, kind=stage.kind, label=stage.label, identity=stage.identity(), attempt="attempt-0",
        files={}, metrics=metrics, seconds=1.0,
    )  # fmt: skip


def test_facts_are_the_numbers_of_a_manifest_by_name() -> None:
    facts = DenseFacts(best_step=10, steps=20, valid_loss=0.5, changed_entries=7)
    written = {"best_step": 10.0, "steps": 20.0, "valid_loss": 0.5, "changed_entries": 7.0}
    assert facts.metrics() == written
    assert facts_of(manifest(DENSE, written), DenseFacts) == manifest(DENSE, written).facts == facts


def test_numbers_of_a_later_version_are_passed_over() -> None:
    assert "later" not in facts_of(manifest(DENSE, metrics_of(DENSE, later=1.0))).metrics()


def test_older_names_are_read_and_new_ones_written() -> None:
    old = {"k": 3.0, "jaccard_lt_sft": 0.25, "mean_rank": 4.0, "entries_kept": 0.125, "energy_kept": 0.75}
    facts = SparseFacts.model_validate(old)
    assert (facts.nonzero_retention, facts.energy_retention, facts.steps) == (0.125, 0.75, None)
    renamed = {"k": 3.0, "jaccard_lt_sft": 0.25, "mean_rank": 4.0, "nonzero_retention": 0.125, "energy_retention": 0.75}
    assert facts.metrics() == renamed
    assert SparseFacts.model_validate(renamed) == facts


@pytest.mark.parametrize(
    ("stage", "without", "given", "field"),
    [
        (DENSE, "changed_entries", {}, "changed_entries: Field required"),
        (DENSE, "steps", {}, "steps: Field required"),
        (DENSE, "", {"valid_loss": nan}, "valid_loss: Input should be a finite number"),
        (SPARSE, "k", {}, "k: Field required"),
        (SPARSE, "", {"jaccard_lt_sft": inf}, "jaccard_lt_sft: Input should be a finite number"),
        (SPARSE, "", {"energy_kept": nan}, "energy_kept: Input should be a finite number"),
        (SPARSE, "", {"mean_rank": -inf}, "mean_rank: Input should be a finite number"),
        (SPARSE, "", {"steps": 2.5}, "steps: Input should be a valid integer"),
        (SPARSE, "steps", {}, "metrics: a training has steps, best_step and either valid_loss or valid_score"),
        (SPARSE, "steps best_step valid_loss", {}, "metrics: a sparse phase has steps, best_step and either"),
        (DENSE, "", {"valid_score": 0.5}, "metrics: a training has steps, best_step and either"),
        (GRADE, "valid_accuracy", {}, "valid_accuracy: Field required"),
        (GRADE, "", {"valid_macro_f1": 62.5}, "valid_macro_f1: Input should be less than or equal to 1"),
    ],
)
def test_what_is_missing_or_no_number_is_named_with_its_manifest(
    stage: Stage, without: str, given: dict[str, float], field: str
) -> None:
    metrics = metrics_of(stage, **given)
    for name in without.split():
        del metrics[name]
    with pytest.raises(StoreError) as raised:
        facts_of(manifest(stage, metrics))
    assert str(raised.value).startswith(f"manifest of {stage.label} ({stage.address}): {field}")


def test_a_grade_knows_its_score_by_metric() -> None:
    facts = GradeFacts(valid_macro_f1=0.25, valid_accuracy=0.5)
    assert (facts.score("macro_f1"), facts.score("accuracy")) == (0.25, 0.5)


@pytest.mark.parametrize("half", [{"steps": 1}, {"best_step": 1}, {"valid_loss": 1.0}, {"valid_score": 1.0}])
def test_a_training_is_measured_whole_or_there_was_none(half: dict[str, Any]) -> None:
    assert TrainingFacts().metrics() == {}
    with pytest.raises(ValidationError, match="a training has steps"):
        TrainingFacts(**half)
