"""The made-up language family of the demo: what its files promise, and what its languages are."""

from __future__ import annotations

import csv
import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import fsspec
import pytest

from deftx.data import archipelago
from deftx.data.archipelago import (
    CONTENT_WORDS,
    EMOTICONS,
    FUNCTION_WORDS,
    LABELS,
    SEEN,
    SOURCE,
    TARGETS,
    Family,
    Meaning,
    Sizes,
    bare,
    family_files,
    make_family,
    write_family,
)

SIZES = Sizes(pretraining=1500, corpus=1200, train=600, valid=90, test=150)
ALL_EMOTICONS = {emoticon for emoticons in EMOTICONS.values() for emoticon in emoticons}
DAUGHTERS = (*SEEN, *TARGETS)

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def family() -> Family:
    return make_family(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archipelago")
    write_family(str(folder), 0, SIZES)
    return folder


def read_rows(folder: Path, code: str, split: str) -> Rows:
    with open(folder / "archipelago" / code / f"{split}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_lines(folder: Path, path: str) -> list[str]:
    return (folder / path).read_text(encoding="utf-8").splitlines()


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def concepts_of(family: Family, *codes: str) -> dict[str, set[str]]:
    """Every word of the languages, with the bare concepts that it may stand for in one of them."""
    concepts: dict[str, set[str]] = {}
    for code in codes:
        for concept, word in family.languages[code].words.items():
            concepts.setdefault(word, set()).add(concept.rstrip("+"))
    return concepts


def readings(line: str, concepts: dict[str, set[str]]) -> Iterator[Meaning]:
    """Every bare meaning that a sentence may have; a word that is in no language is a KeyError."""
    return itertools.product(*(sorted(concepts[word]) for word in line.split() if word not in ALL_EMOTICONS))


# --- files


def test_files_are_those_the_loaders_read(folder: Path) -> None:
    tables = [f"archipelago/{code}/{split}.csv" for code in (SOURCE, *TARGETS) for split in ("valid", "test")]
    corpora = [f"corpora/{code}.txt" for code in (SOURCE, *TARGETS)]
    pretraining = [f"pretraining/{code}.txt" for code in (SOURCE, *SEEN)]
    assert sorted(digests(folder)) == sorted([*tables, f"archipelago/{SOURCE}/train.csv", *corpora, *pretraining])
    assert all(len(read_lines(folder, path)) == SIZES.corpus for path in corpora)
    assert all(len(read_lines(folder, path)) == SIZES.pretraining for path in pretraining)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_sets_are_parallel(folder: Path, family: Family, split: str) -> None:
    source = read_rows(folder, SOURCE, split)
    meanings = [next(readings(row["text"], concepts_of(family, SOURCE))) for row in source]
    for code in TARGETS:
        rows = read_rows(folder, code, split)
        assert [(row["id"], row["label"]) for row in rows] == [(row["id"], row["label"]) for row in source]
        assert [next(readings(row["text"], concepts_of(family, code))) for row in rows] == meanings


@pytest.mark.parametrize(("split", "each"), [("train", 200), ("valid", 30), ("test", 50)])
def test_classes_are_balanced_and_ids_unique(folder: Path, split: str, each: int) -> None:
    rows = read_rows(folder, SOURCE, split)
    assert list(rows[0]) == ["id", "text", "label"]
    assert Counter(row["label"] for row in rows) == dict.fromkeys(LABELS, each)
    assert [row["id"] for row in rows] == [str(i) for i in range(3 * each)]


def test_polarity_of_the_words_is_the_label(folder: Path, family: Family) -> None:
    for row in read_rows(folder, "ila", "test"):
        meaning = next(readings(row["text"], concepts_of(family, "ila")))
        polarities = {concept.split("-")[1] for concept in meaning if "-" in concept} & {"negative", "positive"}
        assert polarities == ({row["label"]} - {"neutral"})


def test_same_seed_gives_the_same_bytes_in_another_process(folder: Path, tmp_path: Path) -> None:
    program = f"from deftx.data.archipelago import *; write_family({str(tmp_path)!r}, 0, {SIZES!r})"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert digests(tmp_path) == digests(folder)


def test_another_seed_gives_other_words() -> None:
    assert not {*make_family(0).proto.items()} >= {*make_family(1).proto.items()}
    files, others = dict(family_files(0, SIZES)), dict(family_files(1, SIZES))
    assert all(content != others[path] for path, content in files.items())


def test_writing_again_touches_nothing_and_mends_what_was_damaged(tmp_path: Path) -> None:
    small = Sizes(30, 30, 30, 9, 9)
    write_family(str(tmp_path), 5, small)
    whole, times = digests(tmp_path), {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    write_family(str(tmp_path), 5, small)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == times
    (tmp_path / "corpora" / "vek.txt").write_bytes(b"torn")
    write_family(str(tmp_path), 5, small)
    assert digests(tmp_path) == whole


def test_a_family_can_be_written_to_any_file_system(folder: Path) -> None:
    write_family("memory://archipelago-test", 0, SIZES)
    with fsspec.open("memory://archipelago-test/corpora/tum.txt", "rb") as file:
        assert file.read() == (folder / "corpora" / "tum.txt").read_bytes()


# --- leaks and anchors


def test_no_evaluation_meaning_is_in_another_text(folder: Path, family: Family) -> None:
    own = concepts_of(family, SOURCE)
    rows = [row for split in ("valid", "test") for row in read_rows(folder, SOURCE, split)]
    sealed = {next(readings(row["text"], own)) for row in rows}
    assert len(sealed) == SIZES.valid + SIZES.test
    texts: dict[str, tuple[str, ...]] = {f"corpora/{code}.txt": (code,) for code in (SOURCE, *TARGETS)}
    texts |= {f"pretraining/{code}.txt": (SOURCE, *SEEN) for code in (SOURCE, *SEEN)}
    for path, codes in texts.items():
        concepts = concepts_of(family, *codes)
        assert not any(reading in sealed for line in read_lines(folder, path) for reading in readings(line, concepts))
    train = read_rows(folder, SOURCE, "train")
    assert not any(next(readings(row["text"], own)) in sealed for row in train)


def test_a_sealed_meaning_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([("the", "noun-sea-0+"), ("the", "noun-sea-0"), ("a", "noun-sea-0")])
    monkeypatch.setattr(archipelago, "draw_meaning", lambda rng, label: next(drawn))
    sealed = {bare(("the", "noun-sea-0"))}
    assert archipelago._fresh_meaning(Random(0), "neutral", sealed) == ("a", "noun-sea-0")


@pytest.mark.parametrize("code", [SOURCE, *TARGETS])
def test_corpora_hold_no_foreign_word(folder: Path, family: Family, code: str) -> None:
    own = {*family.languages[code].words.values()} | ALL_EMOTICONS
    assert {word for line in read_lines(folder, f"corpora/{code}.txt") for word in line.split()} <= own


@pytest.mark.parametrize("code", [SOURCE, *TARGETS])
def test_labelled_text_holds_own_words_only_and_no_emoticon(folder: Path, family: Family, code: str) -> None:
    own = {*family.languages[code].words.values()}
    for split in ("train", "valid", "test") if code == SOURCE else ("valid", "test"):
        assert {word for row in read_rows(folder, code, split) for word in row["text"].split()} <= own


@pytest.mark.parametrize("code", [SOURCE, *SEEN])
def test_pretraining_text_switches_among_the_languages_of_pretraining(folder: Path, family: Family, code: str) -> None:
    own = {*family.languages[code].words.values()} | ALL_EMOTICONS
    known = own.union(*(family.languages[other].words.values() for other in (SOURCE, *SEEN)))
    lines = [line.split() for line in read_lines(folder, f"pretraining/{code}.txt")]
    assert {word for line in lines for word in line} <= known
    assert 0.2 < sum(not own.issuperset(line) for line in lines) / len(lines) < 0.5  # shared words hide some switches


def test_half_of_the_polar_unlabelled_sentences_carry_an_emoticon(folder: Path) -> None:
    lines = [line.split() for line in read_lines(folder, "corpora/ila.txt")]
    marked = [line for line in lines if line[-1] in ALL_EMOTICONS]
    assert len(marked) / len(lines) == pytest.approx(0.5 * 2 / 3, abs=0.04)
    assert not any(ALL_EMOTICONS & {*line[:-1]} for line in lines)
    assert {line[-1] for line in marked} == ALL_EMOTICONS


# --- languages


def test_the_lexicon_has_157_concepts(family: Family) -> None:
    assert (len(CONTENT_WORDS), len(FUNCTION_WORDS), len(family.proto)) == (134, 23, 157)
    assert all(re.fullmatch("[ptkbdgsmnlrw][aeiou][ptkbdgsmnlrw]", family.proto[name]) for name in FUNCTION_WORDS)
    assert all(re.fullmatch("([ptkbdgsmnlrw][aeiou]){2}[ptkbdgsmnlrw]", family.proto[name]) for name in CONTENT_WORDS)


@pytest.mark.parametrize("seed", range(5))
def test_no_two_concepts_share_a_word(seed: int) -> None:
    for language in make_family(seed).languages.values():
        assert len({*language.words.values()}) == len(language.words)


@pytest.mark.parametrize("code", [SOURCE, *DAUGHTERS])
def test_sound_correspondences_are_regular(family: Family, code: str) -> None:
    """Same sound, same surroundings, same reflex: without one exception among all inherited words."""
    language = family.languages[code]

    def kind(letter: str) -> str:
        return next((name for name in ("aeiou", "mnlr", "ptkbdgsw") if letter in name), "edge") if letter else "edge"

    reflexes: dict[tuple[str, str, str], set[str]] = {}
    for concept, word in family.proto.items():
        if concept in language.loans | language.replaced:
            continue
        daughter = language.words[concept]
        assert len(daughter) == len(word)
        for before, old, after, new in zip(["", *word], word, [*word[1:], ""], daughter, strict=False):
            reflexes.setdefault((kind(before), old, kind(after)), set()).add(new)
    assert all(len(letters) == 1 for letters in reflexes.values())
    shifted = {old + new for (_, old, _), (new,) in reflexes.items() if old != new}
    assert shifted
    assert shifted <= {"pf", "tc", "kh", "bv", "dz", "gj", "sx", "wq", "aå", "oö", "uü", "ey"}
    assert len({*language.changes}) == (2 if code == SOURCE else 5)


@pytest.mark.parametrize("code", DAUGHTERS)
def test_shares_of_replaced_and_borrowed_words(family: Family, code: str) -> None:
    language = family.languages[code]
    assert len(language.replaced & {*CONTENT_WORDS}) == 40  # 30 % of 134
    assert len(language.replaced & {*FUNCTION_WORDS}) == 5  # 20 % of 23
    assert len(language.loans) == 11  # 8 % of 134
    assert not language.replaced & language.loans
    source = family.languages[SOURCE]
    assert all(language.words[name] == source.words[name] for name in language.loans)
    assert not any(language.words[name] in family.proto.values() for name in language.replaced)


def test_the_source_inherits_every_word(family: Family) -> None:
    assert not family.languages[SOURCE].replaced
    assert not family.languages[SOURCE].loans


def test_affixes_mark_plural_and_past(family: Family) -> None:
    for language in family.languages.values():
        plural, past = language.affixes
        assert language.words["noun-sea-0+"] == language.words["noun-sea-0"] + plural
        assert language.words["verb-positive-0+"] == language.words["verb-positive-0"] + past
        assert "adj-sea-0+" not in language.words
        assert "the+" not in language.words
    assert len({language.affixes for language in family.languages.values()}) > 2


def test_targets_share_words_with_pretraining_but_not_most(family: Family) -> None:
    known = {word for code in (SOURCE, *SEEN) for word in family.languages[code].words.values()}
    for code in TARGETS:
        words = family.languages[code].words.values()
        assert 0.15 < sum(word in known for word in words) / len(words) < 0.5
