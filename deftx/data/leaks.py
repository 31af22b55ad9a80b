"""Training rows that are evaluation sentences: found by their texts alone, and left out.

NusaX was made by translating SmSA reviews, so SmSA holds most of its Indonesian test sentences, in original or edited
form. Only the source language is compared: none of the eleven translations in NusaX finds a row that Indonesian does
not, and so the address of a task vector does not depend on the target languages. Labels play no part. What the rules
let pass: sentences rewritten below the thresholds, and a part that two longer texts share.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Literal

from deftx.config import EvaluationSplit, LeakRule, Split
from deftx.data.catalogue import Benchmark
from deftx.data.examples import Examples

Rule = Literal["equal", "similar", "contained", "nearest"]
Shared = Literal["equal", "contained", "phrases"]
RULES: Mapping[Rule, str] = {
    "equal": "equal after casefolding and removing all but letters and digits",
    "similar": "rapidfuzz ratio of at least 85 on the same normal form",
    "contained": "one is part of the other, the shorter of at least 20 characters of the normal form",
    "nearest": "the row at the smallest edit distance from a test sentence (LT-SFT)",
}

_SIMILAR = 85
_CONTAINED = 20
_TELLING = 30
"""Characters of a sentence that no text has by chance: the demo's families share up to 24."""
_GAP = "\n"  # never in a normal form


@dataclass(frozen=True)
class Leak:
    """A row that is to go, the first rule that found it, and the evaluation sentence it was found for."""

    row: int
    rule: Rule
    evaluation_index: int


@dataclass(frozen=True)
class Dropped:
    """A dropped training row as it is listed for the reader."""

    split: Split
    row: int
    """Number of the row in its split, from 0."""
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
    """Training and validation examples of the source language minus leaks, and the rows dropped.

    Args:
        training: train and valid; for `lt-sft` test too, where the row nearest to a sentence may lie.
        evaluation: valid and test of the source language; their labels are not looked at. `lt-sft` uses test alone.
        mode: nothing is dropped for `none`, nor for a benchmark whose training data hold no evaluation sentence.
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
    """The rows found for any evaluation sentence, each once, in row order.

    `strict` asks the rules equal, similar and contained in this order; `lt-sft` takes the nearest row of each sentence.
    """
    if mode == "none" or not rows or not evaluation:
        return []
    finders = (_nearest,) if mode == "lt-sft" else (_equal, _similar, _contained)
    found: dict[int, Leak] = {}
    for leak in chain.from_iterable(finder(rows, evaluation) for finder in finders):
        found.setdefault(leak.row, leak)
    return [found[row] for row in sorted(found)]


def find_shared(passages: Sequence[str], sentences: Sequence[str]) -> dict[Shared, list[int]]:
    """Which passages of plain text are (`equal`) or hold (`contained`) an evaluation sentence, each once, in order.

    Exact on the normal form, so that megabytes take seconds. Where the longest one has fewer than 30 characters it may
    be a turn of phrase, and the passage is one of `phrases`; fewer than 20 count only where a passage is no more.
    """
    texts = list(map(_normal, passages))
    known = set(map(_normal, sentences)) - {""}
    longest = {row: text for row, text in enumerate(texts) if text in known}
    ordered = sorted(known, key=len, reverse=True)
    for index, row in _parts(ordered, texts):
        longest.setdefault(row, ordered[index])
    found: dict[Shared, list[int]] = {"equal": [], "contained": [], "phrases": []}
    for row, sentence in sorted(longest.items()):
        whole: Shared = "equal" if sentence == texts[row] else "contained"
        found[whole if len(sentence) >= _TELLING else "phrases"].append(row)
    return found


def texts_digest(evaluation: Mapping[EvaluationSplit, Examples]) -> str:
    """SHA-256 of the texts (and hypotheses) in order: what leak removal depends on, and no label."""
    # the order of the splits is part of the addresses of task vectors
    texts = [[evaluation[split].texts, evaluation[split].pairs] for split in sorted(evaluation)]
    return hashlib.sha256(json.dumps(texts, ensure_ascii=True).encode()).hexdigest()


def _normal(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _equal(rows: Sequence[str], evaluation: Sequence[str]) -> Iterator[Leak]:
    known = {_normal(sentence): index for index, sentence in enumerate(evaluation)}
    for row, text in enumerate(rows):
        if (normal := _normal(text)) and normal in known:
            yield Leak(row, "equal", known[normal])


def _similar(rows: Sequence[str], evaluation: Sequence[str]) -> Iterator[Leak]:
    import numpy as np
    from rapidfuzz import fuzz, process

    sentences, texts = list(map(_normal, evaluation)), list(map(_normal, rows))
    scores = process.cdist(sentences, texts, scorer=fuzz.ratio, score_cutoff=_SIMILAR, dtype=np.float32)
    for row in np.flatnonzero(scores.any(axis=0)).tolist():
        if texts[row]:
            yield Leak(row, "similar", int(scores[:, row].argmax()))


def _contained(rows: Sequence[str], evaluation: Sequence[str]) -> Iterator[Leak]:
    sentences, texts = list(map(_normal, evaluation)), list(map(_normal, rows))
    yield from (Leak(row, "contained", index) for row, index in _parts(texts, sentences))
    yield from (Leak(row, "contained", index) for index, row in _parts(sentences, texts))


def _parts(shorter: Sequence[str], longer: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Each (i, j) where shorter[i] is part of longer[j], by searching all of `longer` as one string."""
    joined = _GAP.join(longer)
    starts = list(accumulate((len(text) + 1 for text in longer), initial=0))
    for i, text in enumerate(shorter):
        at = joined.find(text) if len(text) >= _CONTAINED else -1
        while at >= 0:
            j = bisect_right(starts, at) - 1
            yield i, j
            at = joined.find(text, starts[j + 1])


def _nearest(rows: Sequence[str], evaluation: Sequence[str]) -> Iterator[Leak]:
    """LT-SFT's rule: for each lowercased sentence the nearest detokenised row, ties to the smaller text, then row."""
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
    """SmSA is pre-tokenised: close the space before punctuation and after an opening bracket."""
    spaced = re.sub(r" ([.,;:!?%)\]}'])", r"\1", " ".join(text.split()))
    return re.sub(r"([(\[{]) ", r"\1", spaced)
