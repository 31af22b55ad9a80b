"""The paragraphs on top of a report: what was chosen, what of it can be believed, and what cannot.

A difference is believable when its paired 95 % interval excludes 0, and only on data that did not choose. Each sentence
is a function of its own, empty where there is nothing to say.
"""

from __future__ import annotations

from collections.abc import Iterator

from humanize import natural_list

from deftx.config import METRIC_NAMES
from deftx.evaluate.bootstrap import AVERAGE, Score
from deftx.literal import literal
from orchestrator.record.sweep import State, SweepInfo
from orchestrator.report.results import Results, RowResult
from orchestrator.wording import (
    by_few_labels,
    counted,
    format_items,
    format_selection,
    points,
    points_with_occurring,
    signed_points,
)


def summary(info: SweepInfo, state: State, validation: Results | None, test: Results | None) -> str:
    """The paragraphs before the tables: what was chosen, what is believable and what is doubtful.

    Args:
        info: what was asked for.
        state: the rows and the choice.
        validation: all rows on validation; None when nothing was graded.
        test: all rows on the sealed test sets; None before the search has ended.
    """
    paragraphs = [
        _note(info),
        _running(state),
        _paragraph(_choice(info, state, validation), _level(test), _losses(state, validation)),
        _believable(test) if validation else "",
        _doubtful(info, state, validation, test) if validation else "",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _paragraph(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _note(info: SweepInfo) -> str:
    note = literal(str(info.space.get("note") or ""))
    return f"**Note of the space.** {note}" if note else ""


def _running(state: State) -> str:
    return "" if state.ended else "**The search has not ended**: the test sets are sealed, all below is validation."


# -- what was chosen --------------------------------------------------------------------------------------------------


def _choice(info: SweepInfo, state: State, validation: Results | None) -> str:
    chosen = state.chosen_row
    if chosen is None:
        return "No combination was completed, so none was chosen." if state.ended else "Nothing is chosen yet."
    rule = format_selection(info, validation.metric if validation else None)
    return f"**What was chosen.** {chosen.title}, {_out_of(state)}, by {rule}."


def _out_of(state: State) -> str:
    asked, completed = len(state.combinations), _completed(state)
    if asked == 1:
        return "the only combination asked"
    if completed == 1:
        return f"the only one of {asked} combinations that was completed"
    return f"out of {completed} combinations"


def _level(test: Results | None) -> str:
    if test is None or test.chosen is None:
        return ""
    return (
        f"On the sealed test sets it scores {_points(test, test.chosen)} on average over "
        f"{counted(len(test.targets), 'language')}: {METRIC_NAMES[test.metric]} in percentage points with its 95 % "
        f"interval, {_items(test)}."
    )


def _losses(state: State, validation: Results | None) -> str:
    """The sentence on combinations that failed, and on languages where no combination was graded."""
    failed = sum(row.status == "failed" for row in state.combinations)
    if not failed:
        return ""
    asked = counted(len(state.combinations), "combination")
    lost = _never_graded(validation) if validation else []
    everywhere = validation is not None and len(lost) == len(validation.targets)
    where = f"; none was graded on {'any language' if everywhere else natural_list(lost)}" if lost else ""
    return f"{failed} of {asked} failed{where} (see Failures)."


def _never_graded(results: Results) -> list[str]:
    graded = {name for result in results.rows if result.row.kind == "combination" for name in result.system}
    return [name for name in results.targets if name not in graded]


# -- what can be believed ---------------------------------------------------------------------------------------------


def _believable(test: Results | None) -> str:
    lead = "**What is believable.**"
    if test is None:
        return f"{lead} Nothing yet: the test sets are sealed until the search has ended."
    comparisons = list(_comparisons(test))
    if not comparisons:
        return f"{lead} No difference can be stated: there are no two complete rows to compare."
    sure = [_sure(other, difference) for other, difference in comparisons if difference.excludes_zero]
    if not sure:
        return f"{lead} No difference: every paired 95 % interval includes 0 ({_items(test)})."
    believed = f"In this one training the chosen combination is {natural_list(sure)}"
    return f"{lead} {believed}: paired 95 % intervals that exclude 0 ({_items(test)})."


def _sure(other: str, difference: Score) -> str:
    side = "better" if difference.value > 0 else "worse"
    return f"{side} than {other} by {points(_turned(difference))} points"


def _turned(difference: Score) -> Score:
    """The difference with a positive sign, for a sentence that says better or worse."""
    if difference.value > 0:
        return difference
    return Score(-difference.value, -difference.high, -difference.low)


def _comparisons(results: Results) -> Iterator[tuple[str, Score]]:
    """(name, difference) of the comparisons of the chosen row: with LT-SFT, without a vector, with another's."""
    without = better_without(results)
    others = (
        ("LT-SFT", results.baseline("lt-sft")),
        (f'the stronger row without a language vector ("{without.row.title}")' if without else "", without),
        ("the same with another language's vector", results.baseline("other-language")),
    )
    for title, other in others:
        if results.chosen and other and (difference := results.difference(results.chosen, other).get(AVERAGE)):
            yield title, difference


def better_without(results: Results) -> RowResult | None:
    """The better of the rows without a language vector, by the average on the same data: the harder one to beat."""
    baselines = filter(None, (results.baseline("task"), results.baseline("task+source")))
    complete = [baseline for baseline in baselines if AVERAGE in baseline.scores]
    return max(complete, key=lambda baseline: baseline.scores[AVERAGE].value, default=None)


# -- what cannot ------------------------------------------------------------------------------------------------------


def _doubtful(info: SweepInfo, state: State, validation: Results, test: Results | None) -> str:
    noise = (_noise(test), _any_language(test), _no_lt_sft(test)) if test else ()
    return _paragraph("**What is doubtful.**", *noise, _optimism(info, state, validation), _one_seed(info))


def _noise(test: Results) -> str:
    unclear = [(other, difference) for other, difference in _comparisons(test) if not difference.excludes_zero]
    if not unclear:
        return ""
    others = natural_list([f"{other} ({signed_points(difference)})" for other, difference in unclear])
    interval = "the interval includes 0" if len(unclear) == 1 else "the intervals include 0"
    return f"The chosen combination is **not distinguishable** from {others} on these data: {interval}."


def _any_language(test: Results) -> str:
    """The sentence on the control: a gain that another language's vector gives too is not due to the language."""
    other, without = test.baseline("other-language"), better_without(test)
    if test.chosen is None or other is None or without is None:
        return ""
    gain = test.difference(test.chosen, without).get(AVERAGE)
    lead = test.difference(test.chosen, other).get(AVERAGE)
    if gain is None or lead is None or not (gain.excludes_zero and gain.value > 0):
        return ""
    if lead.excludes_zero and lead.value > 0:
        return ""
    return "So nothing shows that it is the right language that helps: another language's vector may do as well."


def _no_lt_sft(test: Results) -> str:
    if test.chosen is None or AVERAGE in test.chosen.to_lt_sft:
        return ""
    return "Whether denoising helps is open: LT-SFT has no complete row to compare with."


def _optimism(info: SweepInfo, state: State, validation: Results) -> str:
    """The sentence saying that the highest of several noisy scores is too high, and how many others may be as good."""
    completed = _completed(state)
    if validation.chosen is None or completed < 2 or not by_few_labels(info):
        return ""
    near = [not difference.excludes_zero for difference in _rivals(validation, validation.chosen)]
    return (
        f"The chosen combination's validation score is the highest of {completed} and so an optimistic one; "
        f"{_tell_apart(sum(near), len(near))} be told apart from it there ({_items(validation)})."
    )


def _tell_apart(near: int, others: int) -> str:
    """The beginning of a sentence, up to and including `can` or `cannot`."""
    if others == 1:
        return "the other one cannot" if near else "the other one can"
    if near == others:
        return f"none of the {others} others can"
    return f"{near} of the {others} others cannot" if near else f"each of the {others} others can"


def _rivals(validation: Results, chosen: RowResult) -> Iterator[Score]:
    """The average score of the chosen row minus that of each other complete combination."""
    for rival in validation.rows:
        if rival is not chosen and rival.row.kind == "combination" and AVERAGE in rival.scores:
            yield validation.difference(chosen, rival)[AVERAGE]


def _one_seed(info: SweepInfo) -> str:
    return (
        f"This is **one run** (seed {info.seed}): the intervals say what other items would change, not what another "
        "training seed would."
    )


def _completed(state: State) -> int:
    return sum(row.status == "complete" for row in state.combinations)


def _items(results: Results) -> str:
    return format_items(results.items(), parallel=not results.disagreements)


def _points(results: Results, row_result: RowResult) -> str:
    return points_with_occurring(row_result.scores.get(AVERAGE), results.occurring(row_result, AVERAGE))
