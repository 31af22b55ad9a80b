"""What a report says in words: what was chosen and how, how good it is, and how much of that can be believed.

Numbers are percent points, intervals 95 %. `target-valid` is called few-label selection, since target labels chose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deftx.config import Training
from deftx.evaluate import AVERAGE, Estimate, Metric
from orchestrator.record import State, SweepInfo
from orchestrator.results import Results, RowResult

METRIC_WORDS: dict[Metric, str] = {"macro_f1": "macro F1", "accuracy": "accuracy"}
NOTHING = "-"
_SELECTION_WORDS = {
    "target-valid": "few-label selection (the highest mean {metric} on the target languages' validation sets, so "
    "target labels chose the settings)",
    "unlabelled": "unlabelled selection (language settings by the held-out masked-LM loss on each target's own text, "
    "task settings by the source language's validation set, so no target label chose anything)",
}


def points(estimate: Estimate | None) -> str:
    """A score such as `62.3 [59.8, 64.9]`."""
    return _bracketed(estimate, ".1f")


def signed_points(estimate: Estimate | None) -> str:
    """A difference such as `+0.4 [-0.6, +1.5]`."""
    return _bracketed(estimate, "+.1f")


def _bracketed(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return NOTHING
    value, low, high = (round(100 * number, 1) + 0.0 for number in (estimate.value, estimate.low, estimate.high))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def headline(info: SweepInfo, state: State, results: Results | None) -> str:
    """The paragraph on top of the report.

    Args:
        info: what was asked for.
        state: the rows and the choice.
        results: of the test sets when the search has ended, else of validation; none when nothing was graded.
    """
    sentences = [_stage_of_search(state), _choice(info, state, results)]
    if results is not None and results.chosen is not None:
        sentences += [_level(info, results, results.chosen), _gain(results, results.chosen), _to_lt_sft(results.chosen)]
        sentences += [_control(results)]
    sentences += [_failed(state), _one_run(info) if results is not None else ""]
    return " ".join(sentence for sentence in sentences if sentence)


def selection_words(info: SweepInfo, metric: Metric | None) -> str:
    """How the choice is made, under its proper name."""
    selection = str(info.space["selection"])
    return _SELECTION_WORDS.get(selection, selection).format(metric=METRIC_WORDS[metric] if metric else "score")


def validation_words(info: SweepInfo) -> str:
    """What the target languages' validation sets did to the choice."""
    if info.space["selection"] == "unlabelled":
        return "took no part in the choice"
    return "made the choice and therefore flatters the chosen row"


def effective_l1(space: Mapping[str, Any]) -> str:
    """The L1 strength that reaches the gradient, for language and task vectors."""
    return ", ".join(f"{kind} vectors {_l1(space[kind])}" for kind in ("language", "task") if kind in space)


def _l1(recipe: Mapping[str, Any]) -> str:
    training = Training.model_validate(recipe.get("training", {}))
    coded = f" ({training.l1:g} as coded upstream, where the term has no gradient)" if training.l1 else ""
    return f"{training.effective_l1:g}{coded if not training.effective_l1 else ''}"


def _stage_of_search(state: State) -> str:
    return "" if state.ended else "**The search has not ended**: the test sets are sealed, all below is validation."


def _choice(info: SweepInfo, state: State, results: Results | None) -> str:
    chosen, asked = state.chosen_row, len(state.combinations)
    if chosen is None:
        return "No combination was completed, so none was chosen." if state.ended else "Nothing is chosen yet."
    how = selection_words(info, results.metric if results else None)
    lead = "Chosen" if state.ended else "Leading so far"
    return f"{lead}: **{chosen.title}**, of {asked} combination{'s' * (asked != 1)}, by {how}."


def _level(info: SweepInfo, results: Results, chosen: RowResult) -> str:
    where = "On the sealed test sets" if results.split == "test" else f"On validation, which {validation_words(info)},"
    scores = points(chosen.scores.get(AVERAGE))
    return (
        f"{where} it scores {scores} on average over {len(results.targets)} languages "
        f"({METRIC_WORDS[results.metric]} in percent points with its 95 % interval, {results.items()} parallel items)."
    )


def _gain(results: Results, chosen: RowResult) -> str:
    without = better_without(results)
    gain = results.difference(chosen, without).get(AVERAGE) if without else None
    if without is None or gain is None:
        return "There is no complete row without a language vector, so its gain cannot be stated."
    side = "the language vectors help" if gain.value > 0 else "the language vectors harm"
    verdict = f"{side} beyond the noise of the items" if gain.excludes_zero else _UNCLEAR
    return f'Gain over the better row without one ("{without.row.title}"): {signed_points(gain)}: {verdict}.'


_UNCLEAR = "the interval includes 0, so the two are **not distinguishable** on these data"


def better_without(results: Results) -> RowResult | None:
    """The better of the rows without a language vector, by the average on the same data: the harder one to beat."""
    found = [results.baseline("task"), results.baseline("task+source")]
    complete = [one for one in found if one is not None and AVERAGE in one.scores]
    return max(complete, key=lambda one: one.scores[AVERAGE].value, default=None)


def _to_lt_sft(chosen: RowResult) -> str:
    difference = chosen.to_lt_sft.get(AVERAGE)
    if difference is None:
        return "LT-SFT has no complete row to compare with."
    side = "better" if difference.value > 0 else "worse"
    verdict = f"{side} than LT-SFT beyond the noise of the items" if difference.excludes_zero else _UNCLEAR
    return f"Difference to LT-SFT: {signed_points(difference)}: {verdict}."


def _control(results: Results) -> str:
    control, without = results.baseline("other-language"), better_without(results)
    gain = results.difference(control, without).get(AVERAGE) if control and without else None
    return f"Control: with another language's vector that gain is {signed_points(gain)}." if gain else ""


def _failed(state: State) -> str:
    failed = sum(row.status == "failed" for row in state.combinations)
    return f"{failed} of {len(state.combinations)} combinations failed (see Failures)." if failed else ""


def _one_run(info: SweepInfo) -> str:
    return (
        f"**One run** (seed {info.seed}): the intervals say what other items would change, not what another training "
        "seed would."
    )
