"""Removal of training rows that are evaluation sentences, by their texts alone: labels play no part.

NusaX was made by translating SmSA reviews, so SmSA has most of its Indonesian test sentences, in original or edited
form. Only the source language is compared: the other eleven languages of NusaX find no row that Indonesian does not,
and without them the address of a task vector does not depend on the target languages. Two kinds of leak are not found:
sentences rewritten beyond the thresholds, and a part that two longer texts share.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Literal

from deftx.config import EvaluationSplit, LeakRule, Split
from deftx.data.catalogue import Benchmark
from deftx.data.examples import Examples
from deftx.data.normal import letters
from deftx.data.pieces import pieces

Rule = Literal["equal", "similar", "contained", "nearest"]
Shared = Literal["equal", "contained", "phrases"]
RULES: Mapping[Rule, str] = {
    "equal": "the same letters and digits in the normal form, see `normal.letters`",
    "similar": "rapidfuzz ratio of at least 85 on the same normal form",
    "contained": "one is part of the other, the shorter of at least 20 characters of the normal form",
    "nearest": "the row at the smallest edit distance from a test sentence (LT-SFT)",
}

_SIMILAR = 85
"""Smallest ratio of an edited sentence: 100 * (1 - insertions and deletions / length of both)."""
_CONTAINED = 20
"""Fewest characters of a text that counts as part of another: shorter ones are often stock phrases."""
_TELLING = 30
"""Fewest characters of a sentence that no text has by chance: texts of the demo's families share up to 24."""
_LONG = 2**20
"""Characters that are searched as one: of several passages, or of a piece of one."""
_GAP = "\n"
"""Between texts that are searched as one: it is in no normal form."""


@dataclass(frozen=True)
class Leak:
    """A row that has to go: its number, the first rule that found it, and the evaluation sentence it matched."""

    row: int
    rule: Rule
    evaluation_index: int


@dataclass(frozen=True)
class Dropped:
    """A dropped row as `dropped_rows.json` lists it."""

    split: Split
    row: int
    """Its number in its split, from 0."""
    rule: Rule
    text: str
    evaluation_split: EvaluationSplit
    evaluation_text: str


@dataclass(frozen=True)
class Cleaned:
    """The labelled data of the source language without the rows that leak."""

    train: Examples
    valid: Examples
    dropped: tuple[Dropped, ...]


def clean_training(
    benchmark: Benchmark,
    training: Mapping[Split, Examples],
    evaluation: Mapping[EvaluationSplit, Examples],
    mode: LeakRule,
) -> Cleaned:
    """The training and validation examples of the source language without leaks, and the rows that were dropped.

    Args:
        benchmark: where its `leaks` is False, nothing is dropped.
        training: the labelled data by split: train and valid, and for `lt-sft` test, which may have the nearest row.
        evaluation: valid and test of the source language, whose labels are not looked at; `lt-sft` uses test only.
        mode: the rules; for `none` nothing is dropped.
    """
    rows = [(split, row) for split, examples in training.items() for row in range(len(examples))]
    splits: tuple[EvaluationSplit, ...] = ("test",) if mode == "lt-sft" else ("valid", "test")
    compared = splits if benchmark.leaks and mode != "none" else ()
    sentences = [(split, text) for split in compared for text in evaluation[split].texts]
    texts = [training[split].texts[row] for split, row in rows]
    leaks = find_leaks(texts, [text for _, text in sentences], mode)
    gone = {rows[leak.row] for leak in leaks}
    kept = {
        split: examples.take([row for row in range(len(examples)) if (split, row) not in gone])
        for split, examples in training.items()
    }
    dropped = (Dropped(*rows[k.row], k.rule, texts[k.row], *sentences[k.evaluation_index]) for k in leaks)
    return Cleaned(kept["train"], kept["valid"], tuple(dropped))


def find_leaks(rows: Sequence[str], evaluation: Sequence[str], mode: LeakRule) -> list[Leak]:
    """The rows that match any evaluation sentence, each once, in row order.

    `strict` applies the rules equal, similar and contained in this order; `lt-sft` takes each sentence's nearest row.
    """
    if mode == "none" or not rows or not evaluation:
        return []
    finders = (_nearest,) if mode == "lt-sft" else (_equal, _similar, _contained)
    leaks: dict[int, Leak] = {}
    for leak in chain.from_iterable(finder(rows, evaluation) for finder in finders):
        leaks.setdefault(leak.row, leak)
    return [leaks[row] for row in sorted(leaks)]


def find_shared(passages: Sequence[str], sentences: Sequence[str]) -> dict[Shared, list[int]]:
    """The passages of plain text that equal or contain an evaluation sentence: their numbers in order, each once.

    Normal forms are compared exactly, so that megabytes take seconds. A passage is listed by the longest sentence it
    has: under `equal` or `contained`, or under `phrases` where that has fewer than 30 characters and may be there by
    chance. A sentence of fewer than 20 counts only where it is the whole passage.
    """
    normals = set(map(letters, sentences)) - {""}
    ordered = sorted(normals, key=len, reverse=True)
    equal: set[int] = set()
    longest: dict[int, int] = {}
    """By row the number of its sentence in `ordered`."""
    for rows, texts in _together(_windows(passages, len(ordered[0])) if ordered else ()):
        whole = [row for row, text in zip(rows, texts, strict=True) if text in normals and len(passages[row]) <= _LONG]
        equal.update(whole)
        for index, at in _parts(ordered, texts):
            longest[rows[at]] = min(index, longest.get(rows[at], index))
    shared: dict[Shared, list[int]] = {"equal": [], "contained": [], "phrases": []}
    for row in sorted({*equal, *longest}):
        length = len(letters(passages[row]) if row in equal else ordered[longest[row]])
        how: Shared = "equal" if row in equal else "contained"
        shared[how if length >= _TELLING else "phrases"].append(row)
    return shared


def _windows(passages: Iterable[str], longest: int) -> Iterator[tuple[int, str]]:
    """The number of each passage and its letters; of a long one those of each piece, after the end of the one before.

    Args:
        longest: letters of the longest sentence, which may stand across two pieces.
    """
    for row, passage in enumerate(passages):
        before = ""
        for piece in pieces(passage, _LONG):
            yield row, (window := before + letters(piece))
            before = window[-longest:]


def _together(texts: Iterable[tuple[int, str]]) -> Iterator[tuple[list[int], list[str]]]:
    """Numbered texts that are searched as one: all of a file's would take a multiple of its memory."""
    rows, together, characters = list[int](), list[str](), 0
    for row, text in texts:
        rows.append(row)
        together.append(text)
        characters += len(text)
        if characters >= _LONG:
            yield rows, together
            rows, together, characters = [], [], 0
    yield rows, together


def texts_digest(evaluation: Mapping[EvaluationSplit, Examples]) -> str:
    """SHA-256 of the texts (and hypotheses) in order, on which leak removal depends; labels do not count."""
    # the order of the splits is part of the addresses of task vectors
    texts = [[evaluation[split].texts, evaluation[split].pairs] for split in sorted(evaluation)]
    return hashlib.sha256(json.dumps(texts, ensure_ascii=True).encode()).hexdigest()


def _equal(rows: Sequence[str], evaluation: Sequence[str]) -> Iterator[Leak]:
    sentences = {letters(sentence): index for index, sentence in enumerate(evaluation)}
    for row, text in enumerate(rows):
        if (normal := letters(text)) and normal in sentences:
            yield Leak(row, "equal", sentences[normal])


def _similar(rows: Sequence[str], evaluation: Sequence[str]) -> Iterator[Leak]:
    import numpy as np
    from rapidfuzz import fuzz, process

    sentences, texts = list(map(letters, evaluation)), list(map(letters, rows))
    scores = process.cdist(sentences, texts, scorer=fuzz.ratio, score_cutoff=_SIMILAR, dtype=np.float32)
    for row in np.flatnonzero(scores.any(axis=0)).tolist():
        if texts[row]:
            yield Leak(row, "similar", int(scores[:, row].argmax()))


def _contained(rows: Sequence[str], evaluation: Sequence[str]) -> Iterator[Leak]:
    sentences, texts = list(map(letters, evaluation)), list(map(letters, rows))
    yield from (Leak(row, "contained", index) for row, index in _parts(texts, sentences))
    yield from (Leak(row, "contained", index) for index, row in _parts(sentences, texts))


def _parts(shorter: Sequence[str], longer: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Each (i, j) where shorter[i] has at least `_CONTAINED` characters and is part of longer[j].

    All of `longer` is searched as one string.
    """
    joined = _GAP.join(longer)
    starts = list(accumulate((len(text) + 1 for text in longer), initial=0))
    for i, text in enumerate(shorter):
        at = joined.find(text) if len(text) >= _CONTAINED else -1
        while at >= 0:
            j = bisect_right(starts, at) - 1
            yield i, j
            at = joined.find(text, starts[j + 1])


def _nearest(rows: Sequence[str], evaluation: Sequence[str]) -> Iterator[Leak]:
    """LT-SFT's rule: for each lowercased sentence the detokenised row at the smallest edit distance.

    Of several the one whose text sorts first, then the first.
    """
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    texts = [_detokenised(row) for row in rows]
    for index, sentence in enumerate(evaluation):
        query = sentence.lower()
        _, distance, _ = process.extractOne(query, texts, scorer=Levenshtein.distance)
        ties = process.extract(query, texts, scorer=Levenshtein.distance, score_cutoff=distance, limit=None)
        _, row = min((text, row) for text, _, row in ties)
        yield Leak(row, "nearest", index)


def _detokenised(text: str) -> str:
    """The text without the spaces before punctuation and after opening brackets: SmSA is tokenised at these."""
    spaced = re.sub(r" ([.,;:!?%)\]}'])", r"\1", " ".join(text.split()))
    return re.sub(r"([(\[{]) ", r"\1", spaced)
