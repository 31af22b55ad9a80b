"""Texts that more than one package uses: scores, metrics, the rule of selection, and warnings about a stage.

Numbers are percentage points, intervals 95 %. `target-valid` is called few-label selection, since target labels chose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deftx.config import METRIC_NAMES, Metric, Training
from deftx.evaluate.bootstrap import Score
from deftx.rank import Rank
from deftx.stages.facts import SparseFacts, TrainingFacts
from deftx.stages.kinds import facts_of, kind_of
from deftx.stages.manifest import Manifest
from orchestrator.record.sweep import SweepInfo

NOTHING = "-"
_FEW_LABELS = (
    "few-label selection (the highest mean {metric} on the target languages' validation sets, so target labels chose "
    "the settings, though they trained no vector)"
)
_NO_LABELS = (
    "unlabelled selection (language settings by the held-out masked-LM loss on each target's own text, task settings "
    "by the source language's validation set, so no target label chose anything)"
)


def points(score: Score | None) -> str:
    """A score such as `62.3 [59.8, 64.9]`."""
    return _bracketed(score, ".1f")


def points_with_occurring(score: Score | None, occurring: float | None) -> str:
    """A score such as `62.3 [59.8, 64.9]`, and that over the classes that occur where some do not."""
    return points(score) + ("" if occurring is None else f" ({100 * occurring:.1f} over the classes that occur)")


def signed_points(score: Score | None) -> str:
    """A difference such as `+0.4 [-0.6, +1.5]`."""
    return _bracketed(score, "+.1f")


def _bracketed(score: Score | None, form: str) -> str:
    if score is None:
        return NOTHING
    value, low, high = (_format_number(number, form) for number in (score.value, score.low, score.high))
    if score.excludes_zero:
        low, high = (_not_zero(number, form) for number in (score.low, score.high))
    return f"{value} [{low}, {high}]"


def _format_number(number: float, form: str) -> str:
    """A share in percentage points, without a minus sign when it rounds to 0."""
    return f"{round(100 * number, 1) + 0.0:{form}}"


def _not_zero(number: float, form: str) -> str:
    """A share in percentage points, with more digits where it would look like 0."""
    near = round(100 * number, 1) == 0
    return f"{100 * number:{form.replace('.1f', '.1g')}}" if near else _format_number(number, form)


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 language`, `1,200 languages`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def format_items(number: int, *, parallel: bool) -> str:
    """How many items a score is measured on; `parallel` where the languages' items are translations."""
    return f"n = {number:,} {'parallel ' if parallel else ''}items"


def by_few_labels(info: SweepInfo) -> bool:
    """Whether labels of the target languages choose the settings."""
    return info.space.get("selection") != "unlabelled"


def format_selection(info: SweepInfo, metric: Metric | None) -> str:
    """The rule of selection, with its name."""
    rule = _FEW_LABELS if by_few_labels(info) else _NO_LABELS
    return rule.format(metric=METRIC_NAMES[metric] if metric else "score")


def format_validation(info: SweepInfo) -> str:
    """What validation scores are worth, as the end of a sentence."""
    if by_few_labels(info):
        return "made the choice and therefore flatters the chosen row"
    return "took no part in the choice"


def effective_l1(space: Mapping[str, Any]) -> str:
    """The L1 strength that reaches the gradient, for language and task vectors."""
    return ", ".join(f"{kind} vectors {_l1(space[kind])}" for kind in ("language", "task") if kind in space)


def _l1(recipe: Mapping[str, Any]) -> str:
    training = Training.model_validate(recipe.get("training", {}))
    coded = f" ({training.l1:g} as coded upstream, where the term has no gradient)" if training.l1 else ""
    return f"{training.effective_l1:g}{coded if not training.effective_l1 else ''}"


def format_precision(space: Mapping[str, Any]) -> str:
    """What the backbone, where it is pre-trained here, and both kinds of vector train in."""
    recipes = {"backbone": space.get("backbone"), "language vectors": space["language"], "task vectors": space["task"]}
    trained = {name: recipe.get("training", {}) for name, recipe in recipes.items() if isinstance(recipe, Mapping)}
    default = Training().precision  # not all of it is read: another version may have written it
    return ", ".join(f"{name} {training.get('precision', default)}" for name, training in trained.items())


def format_score(score: float, selection: str) -> str:
    """A combination's score, with the name of the selection."""
    if selection == "target-valid":
        return f"{score * 100:.2f} on validation (few-label selection)"
    return f"{score:+.3f}, source validation less held-out loss (selection without target labels)"


NEAR_LT_SFT = 0.95
"""From this Jaccard overlap on a denoised mask is nearly LT-SFT's: denoising chose hardly anything."""

_FEW_VALIDATIONS = 3


def stage_warnings(manifest: Manifest) -> list[str]:
    """The warnings about a published stage, one line each; they do not name the stage (its label does).

    Only those that the stage itself recorded, as the check of a text does, begin with its subject.
    """
    of_text = manifest.details.get("warnings", [])
    of_training = (_clamped(manifest), _near_lt_sft(manifest), _never_improved(manifest), _halved(manifest))
    return [*of_text, *filter(None, of_training)]


def _clamped(manifest: Manifest) -> str:
    """The warning about a uniform rank beyond min(m, n): such matrices are left as they are."""
    denoise = manifest.identity["settings"].get("denoise")
    asked = Rank.parse(denoise["rank"]).uniform if denoise else None
    matrices = manifest.details.get("matrices", [])
    clamped = [matrix["rank"] for matrix in matrices if asked is not None and matrix["rank"] < asked]
    if not clamped:
        return ""
    number = "every matrix" if len(clamped) == len(matrices) else f"{len(clamped)} of {len(matrices)} matrices"
    return f"rank {asked} is more than {number} can have (the smallest {min(clamped)}): clamped, so not denoised there"


def _halved(manifest: Manifest) -> str:
    """The warning that memory ran out: dropout drew otherwise than with the micro-batch that was set."""
    shortage = manifest.details.get("out_of_memory")
    return f"made with {manifest.execution['micro_batch']} examples at once: {shortage}" if shortage else ""


def _near_lt_sft(manifest: Manifest) -> str:
    overlap = facts_of(manifest, SparseFacts).jaccard_lt_sft if kind_of(manifest.kind).makes_sft else None
    if overlap is None or overlap < NEAR_LT_SFT or not manifest.identity["settings"].get("denoise"):
        return ""
    return f"its mask is nearly LT-SFT's (Jaccard overlap {overlap:.2f}): denoising changed little"


def _never_improved(manifest: Manifest) -> str:
    """The warning that the best checkpoint is the first that was validated."""
    steps, facts = [point["step"] for point in manifest.curve], manifest.facts
    best = facts.best_step if isinstance(facts, TrainingFacts) else None
    if len(steps) < _FEW_VALIDATIONS or best != steps[0]:
        return ""
    return f"validation never improved after step {steps[0]:,.0f} of {steps[-1]:,.0f}, the first time it was measured"
