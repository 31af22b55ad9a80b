"""Whether equal ids in several languages are one item translated, by the labels that the ids have there.

Translations of one sentence have one label. Where an id is only a row's number, the labels of two tables agree no more
often than chance has it; tied all the same, their rows would be drawn together for nothing, and the interval of the
average be wrong. Tables whose labels all but agree by chance, since nearly all rows have one label, are not found out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from deftx.evaluate.bootstrap import System

DIFFERING = 0.05
"""Largest share of the ids that two languages share whose labels may differ: translators do correct labels."""


@dataclass(frozen=True)
class Disagreement:
    """Two languages whose equal ids are not translations: how many ids both have, and how many differ in labels."""

    languages: tuple[str, str]
    shared: int
    differing: int


def disagreements(system: System) -> tuple[Disagreement, ...]:
    """The pairs of languages of which more than 5 % of the ids that both have stand for other labels.

    Where an id has several rows, as a premise with its hypotheses, labels agree if those of one language are all among
    those of the other: a language may lack some of the rows.
    """
    return tuple(_disagreements({language: _labels(system, language) for language in system}))


def _disagreements(labels: Mapping[str, Mapping[str, Counter[int]]]) -> Iterator[Disagreement]:
    for a, b in combinations(labels, 2):
        shared = labels[a].keys() & labels[b].keys()
        pairs = ((labels[a][id], labels[b][id]) for id in shared)
        differing = sum(not (one <= other or other <= one) for one, other in pairs)
        if differing > DIFFERING * len(shared):
            yield Disagreement((a, b), len(shared), differing)


def _labels(system: System, language: str) -> dict[str, Counter[int]]:
    labels: dict[str, Counter[int]] = {}
    for id, label in zip(system[language].ids, system[language].gold, strict=True):
        labels.setdefault(id, Counter())[label] += 1
    return labels


def groups(languages: Iterable[str], found: Iterable[Disagreement]) -> dict[str, str]:
    """The group of each language, named by its first; one joins the first group with none of which it disagrees."""
    apart = {frozenset(one.languages) for one in found}
    group: dict[str, str] = {}
    for language in languages:
        fitting = (
            first
            for first in dict.fromkeys(group.values())
            if not any(frozenset((language, other)) in apart for other, its in group.items() if its == first)
        )
        group[language] = next(fitting, language)
    return group


def tied(system: System, group: Mapping[str, str]) -> System:
    """The predictions, their ids apart from those of other groups; unchanged where there is one group."""
    if len(set(group.values())) < 2:
        return system
    return {
        language: replace(one, ids=[f"{group[language]}: {id}" for id in one.ids]) for language, one in system.items()
    }
