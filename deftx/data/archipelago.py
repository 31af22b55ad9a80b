"""The demo's archipelago: a made-up language family small enough to pre-train on, and related enough to transfer.

One proto-lexicon of 157 concepts has seven daughters: a source language, three more that pre-training sees and three
targets that it never sees. A daughter keeps a word under its own regular sound changes, borrows it from the source or
has replaced it, and may have other affixes. A sentence is drawn once, as a meaning (a sequence of concepts), and can be
spelled in all of them: evaluation sets are parallel, and no evaluation meaning is in any other text.

What ties the languages together are emoticons, which all unlabelled text shares, and code-switching, which only
pre-training text has. Word order is the same everywhere: what a language vector can learn here is words, not syntax.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from random import Random

from fsspec.core import url_to_fs

SOURCE = "sor"
SEEN = ("mer", "tol", "nub")
TARGETS = ("ila", "vek", "tum")
LABELS = ("negative", "neutral", "positive")
EMOTICONS = {"negative": (":(", ":/", "D:"), "neutral": (), "positive": (":)", ":D", "<3")}

Meaning = tuple[str, ...]
"""Concepts in the order of speech. A `+` after a concept asks for its affix: plural of a noun, past of a verb."""
Statement = tuple[str, Meaning]
"""A label and a meaning."""

_TOPICS = ("sea", "farm", "craft", "house", "feast", "journey")
_FIELDS = {
    (kind, field): [f"{kind}-{field}-{i}" for i in range(size)]
    for fields, sizes in (
        (_TOPICS, {"noun": 8, "verb": 4, "adj": 3}),
        (("negative", "positive"), {"adj": 16, "verb": 6}),
    )
    for field in fields
    for kind, size in sizes.items()
}
_ARTICLES, _PERSONS = ("the", "a", "this"), ("we", "they", "she", "you")
_PLACES, _JOINTS, _TIMES = ("in", "near", "with", "from"), ("and", "but", "so"), ("today", "often", "again")
_INTENSIFIERS = {"negative": ("too", "utterly"), "neutral": ("rather",), "positive": ("very", "truly")}
FUNCTION_WORDS = (
    *_ARTICLES,
    *_PERSONS,
    *_PLACES,
    *_JOINTS,
    *_TIMES,
    *chain.from_iterable(_INTENSIFIERS.values()),
    "is",
)
CONTENT_WORDS = tuple(chain.from_iterable(_FIELDS.values()))
# Opinions differ in form as well as in words: without that, plain text could not tell praise from blame.
_ADJECTIVE_SHARE = {"negative": 0.35, "neutral": 0.5, "positive": 0.7}

# Every new letter lies outside the proto-language's and has one origin, so no change ever makes two words one.
_CONSONANTS, _VOWELS = "ptkbdgsmnlrw", "aeiou"
_SHIFTED = str.maketrans("ptkbdgswaoue", "fchvzjxqåöüy")
_AFTER_VOWEL, _BEFORE_VOWEL, _BEFORE_SONORANT = "(?<=[aeiouåöüy])", "(?=[aeiouåöüy])", "(?=[mnlr])"
SOUND_CHANGES = (
    "^[ptk]",
    "^[bdg]",
    "^[sw]",
    "[ptk]$",
    "[bdg]$",
    *(f"{_AFTER_VOWEL}{sounds}{_BEFORE_VOWEL}" for sounds in ("[ptk]", "[bdg]", "[sw]")),
    f"[ao]{_BEFORE_SONORANT}",
    f"[ue]{_BEFORE_SONORANT}",
)
"""Each change shifts a class of sounds in one position of every word."""
_AFFIXES = ("en", "ta", "is", "um", "ko", "ra")

# So a target shares 26 to 57 % of its base words with a seen language: with more, the task vector alone left little to
# gain (docs/log.md).
_CHANGES_OF_SOURCE, _CHANGES_OF_DAUGHTER = 2, 5
_LOANS, _REPLACED_CONTENT, _REPLACED_FUNCTION = 0.08, 0.30, 0.20
_CODE_SWITCHED_SENTENCES, _CODE_SWITCHED_WORDS, _EMOTICONS = 0.5, 0.4, 0.5


@dataclass(frozen=True)
class Language:
    """A daughter of the proto-language: how it spells each concept, and where the spelling comes from."""

    changes: tuple[str, ...]
    affixes: tuple[str, ...]
    loans: frozenset[str]
    replaced: frozenset[str]
    words: Mapping[str, str]

    def spell(self, meaning: Meaning) -> str:
        """The sentence that says `meaning` in this language."""
        return " ".join(self.words[concept] for concept in meaning)


@dataclass(frozen=True)
class Family:
    """The proto-lexicon of a seed, and its daughters by their codes."""

    seed: int
    proto: Mapping[str, str]
    languages: Mapping[str, Language]


@dataclass(frozen=True)
class Sizes:
    """The numbers of sentences: unlabelled ones a language, labelled ones a split."""

    pretraining: int = 6000
    corpus: int = 4800
    train: int = 3000
    valid: int = 300
    test: int = 600


def make_family(seed: int) -> Family:
    """The family of a seed: a proto-lexicon, and the daughters that descend from it."""
    rng = Random(f"{seed}/proto")
    proto: dict[str, str] = {}
    for concept in (*FUNCTION_WORDS, *CONTENT_WORDS):
        proto[concept] = _coin(rng, concept, proto.values())
    source = _descend(Random(f"{seed}/{SOURCE}"), proto, None)
    daughters = {code: _descend(Random(f"{seed}/{code}"), proto, source) for code in (*SEEN, *TARGETS)}
    return Family(seed, proto, {SOURCE: source, **daughters})


def _coin(rng: Random, concept: str, taken: Collection[str], changes: tuple[str, ...] = ()) -> str:
    """A new word, CVC for a function word and CVCVC for any other, that no concept has yet."""
    shape = "CVC" if concept in FUNCTION_WORDS else "CVCVC"
    while True:
        word = _shift("".join(rng.choice(_CONSONANTS if slot == "C" else _VOWELS) for slot in shape), changes)
        if word not in taken:
            return word


def _shift(word: str, changes: tuple[str, ...]) -> str:
    """The word after some sound changes, whose order does not matter: each leaves the conditions of the others."""
    for pattern in changes:
        word = re.sub(pattern, lambda sound: sound[0].translate(_SHIFTED), word)
    return word


def _descend(rng: Random, proto: Mapping[str, str], source: Language | None) -> Language:
    """A daughter of the proto-language. The source itself (`source` is None) is conservative: it only shifts sounds."""
    changes = tuple(rng.sample(SOUND_CHANGES, _CHANGES_OF_DAUGHTER if source else _CHANGES_OF_SOURCE))
    words = {concept: _shift(word, changes) for concept, word in proto.items()}
    if source is None:
        return Language(changes, _AFFIXES[:2], frozenset(), frozenset(), _inflect(words, _AFFIXES[:2]))
    loans = _borrow(rng, words, source)
    coined = _replace(rng, loans, {*words.values(), *loans.values(), *proto.values()}, changes)
    affixes = tuple(rng.sample(_AFFIXES, 2))
    return Language(changes, affixes, frozenset(loans), frozenset(coined), _inflect(words | loans | coined, affixes))


def _borrow(rng: Random, words: Mapping[str, str], source: Language) -> dict[str, str]:
    """Loanwords from the source for some concepts; no word that is its own already, so that none is ambiguous."""
    own = set(words.values())
    foreign = [concept for concept in CONTENT_WORDS if source.words[concept] not in own]
    return {concept: source.words[concept] for concept in rng.sample(foreign, round(_LOANS * len(CONTENT_WORDS)))}


def _replace(rng: Random, loans: Collection[str], taken: set[str], changes: tuple[str, ...]) -> dict[str, str]:
    """New words for some concepts, none of them `taken`, to which the sound changes have been applied."""
    native = [concept for concept in CONTENT_WORDS if concept not in loans]
    concepts = rng.sample(native, round(_REPLACED_CONTENT * len(CONTENT_WORDS)))
    concepts += rng.sample(FUNCTION_WORDS, round(_REPLACED_FUNCTION * len(FUNCTION_WORDS)))
    coined: dict[str, str] = {}
    for concept in concepts:
        coined[concept] = _coin(rng, concept, {*taken, *coined.values()}, changes)
    return coined


def _inflect(words: Mapping[str, str], affixes: tuple[str, ...]) -> dict[str, str]:
    """The words by concept, with the plural of every noun and the past of every verb."""
    affix = dict(zip(("noun", "verb"), affixes, strict=True))
    kinds = {concept: concept.split("-")[0] for concept in words}
    return {**words, **{f"{c}+": word + affix[kinds[c]] for c, word in words.items() if kinds[c] in affix}}


def draw_meaning(rng: Random, label: str) -> Meaning:
    """A statement that bears the label, often joined to a report that is neutral."""
    topic = rng.choice(_TOPICS)
    statement = _statement(rng, topic, label)
    if rng.random() >= 0.4:
        return statement
    clauses = [statement]
    clauses.insert(rng.randrange(2), (*_noun_phrase(rng, topic), *_report(rng, topic)))
    return (*clauses[0], rng.choice(_JOINTS), *clauses[1])


def _statement(rng: Random, topic: str, label: str) -> Meaning:
    """`the boat is very good` or `we truly love the boat`. A neutral one says the same with words of its topic."""
    field = topic if label == "neutral" else label
    intensifier = _intensifier(rng, label)
    if rng.random() < _ADJECTIVE_SHARE[label]:
        return (*_noun_phrase(rng, topic), "is", *intensifier, rng.choice(_FIELDS["adj", field]))
    verb = _mark(rng, rng.choice(_FIELDS["verb", field]))
    return (rng.choice(_PERSONS), *intensifier, verb, *_noun_phrase(rng, topic))


def _intensifier(rng: Random, label: str) -> Meaning:
    """No intensifier, one of the label or, one time in ten, any: a hint at the label that does not give it away."""
    if rng.random() < 0.4:
        return ()
    suiting = LABELS if rng.random() < 0.1 else (label,)
    return (rng.choice([word for name in suiting for word in _INTENSIFIERS[name]]),)


def _noun_phrase(rng: Random, topic: str) -> Meaning:
    adjective = (rng.choice(_FIELDS["adj", topic]),) if rng.random() < 0.25 else ()
    return (rng.choice(_ARTICLES), *adjective, _mark(rng, rng.choice(_FIELDS["noun", topic])))


def _report(rng: Random, topic: str) -> Meaning:
    """`is near the old boat` or `sank with the boat again`."""
    verb = "is" if rng.random() < 0.3 else _mark(rng, rng.choice(_FIELDS["verb", topic]))
    time = (rng.choice(_TIMES),) if rng.random() < 0.4 else ()
    return (verb, rng.choice(_PLACES), *_noun_phrase(rng, topic), *time)


def _mark(rng: Random, concept: str) -> str:
    return f"{concept}+" if rng.random() < 0.25 else concept


def bare(meaning: Meaning) -> Meaning:
    """A meaning without its affixes: sentences that differ in affixes only count as the same."""
    return tuple(concept.rstrip("+") for concept in meaning)


def _fresh_meaning(rng: Random, label: str, sealed: Collection[Meaning]) -> Meaning:
    while bare(meaning := draw_meaning(rng, label)) in sealed:
        pass
    return meaning


def _labels(rng: Random, count: int) -> list[str]:
    """Labels in random order, each as often as the others."""
    labels = [LABELS[i % len(LABELS)] for i in range(count)]
    rng.shuffle(labels)
    return labels


def _evaluation_rows(seed: int, sizes: Sizes) -> tuple[dict[str, list[Statement]], set[Meaning]]:
    """The rows of validation and test, all different, and their bare meanings, which no other text may have."""
    rows: dict[str, list[Statement]] = {"valid": [], "test": []}
    sealed: set[Meaning] = set()
    for split, count in (("valid", sizes.valid), ("test", sizes.test)):
        rng = Random(f"{seed}/{split}")
        for label in _labels(rng, count):
            rows[split].append((label, _fresh_meaning(rng, label, sealed)))
            sealed.add(bare(rows[split][-1][1]))
    return rows, sealed


def _table(language: Language, rows: Iterable[Statement]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("id", "text", "label"))
    writer.writerows((i, language.spell(meaning), label) for i, (label, meaning) in enumerate(rows))
    return file.getvalue()


def _text(family: Family, code: str, count: int, sealed: Collection[Meaning], *, switch: bool) -> str:
    """Unlabelled sentences, one a line; half of the negative and positive ones end in an emoticon."""
    rng = Random(f"{family.seed}/{code}/{'pretraining' if switch else 'corpus'}")
    lines = []
    for _ in range(count):
        label = rng.choice(LABELS)
        meaning = _fresh_meaning(rng, label, sealed)
        switched = switch and rng.random() < _CODE_SWITCHED_SENTENCES
        sentence = _code_switch(rng, family, code, meaning) if switched else family.languages[code].spell(meaning)
        emoticon = EMOTICONS[label] and rng.random() < _EMOTICONS
        lines.append(f"{sentence} {rng.choice(EMOTICONS[label])}\n" if emoticon else f"{sentence}\n")
    return "".join(lines)


def _code_switch(rng: Random, family: Family, code: str, meaning: Meaning) -> str:
    """The sentence with some of its content words in other languages of pre-training."""
    others = [other for other in (SOURCE, *SEEN) if other != code]
    words = []
    for concept in meaning:
        foreign = "-" in concept and rng.random() < _CODE_SWITCHED_WORDS
        words.append(family.languages[rng.choice(others) if foreign else code].words[concept])
    return " ".join(words)


def family_files(seed: int, sizes: Sizes = Sizes()) -> Iterator[tuple[str, str]]:
    """Path and content of every file of a family, in the layout that the ordinary loaders read."""
    family = make_family(seed)
    evaluation, sealed = _evaluation_rows(seed, sizes)
    for code in (SOURCE, *SEEN):
        yield f"pretraining/{code}.txt", _text(family, code, sizes.pretraining, sealed, switch=True)
    for code in (SOURCE, *TARGETS):
        yield f"corpora/{code}.txt", _text(family, code, sizes.corpus, sealed, switch=False)
        for split, rows in evaluation.items():
            yield f"archipelago/{code}/{split}.csv", _table(family.languages[code], rows)
    rng = Random(f"{seed}/train")
    train = [(label, _fresh_meaning(rng, label, sealed)) for label in _labels(rng, sizes.train)]
    yield f"archipelago/{SOURCE}/train.csv", _table(family.languages[SOURCE], train)


def write_family(folder: str, seed: int, sizes: Sizes = Sizes()) -> None:
    """Write the family of a seed to a folder or fsspec URL; a file that has the right bytes already is not touched."""
    fs, root = url_to_fs(folder)
    for path, content in family_files(seed, sizes):
        target, data = f"{root.rstrip('/')}/{path}", content.encode()
        if not fs.exists(target) or fs.cat_file(target) != data:
            fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(target, data)
