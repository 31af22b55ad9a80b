"""Leak removal: each rule by hand, edited copies planted and found, and the counts on the real files."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftx.config import EVALUATION_SPLITS, EvaluationSplit, LeakRule, Split
from deftx.data.catalogue import BENCHMARKS
from deftx.data.examples import Examples, evaluation_source, read_examples, read_training, training_sources
from deftx.data.leaks import Cleaned, Dropped, Leak, clean_training, find_leaks, find_shared, texts_digest

NUSAX = BENCHMARKS["nusax"]
SENTENCE = "Tempatnya nyaman, makanannya enak; cocok untuk keluarga!"

needs_real_files = pytest.mark.skipif(not os.environ.get("DEFTX_DATA_ROOT"), reason="DEFTX_DATA_ROOT is not set")


def examples(*texts: str) -> Examples:
    return Examples(tuple(map(str, range(len(texts)))), texts, None, (0,) * len(texts))


# --- strict


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ("tempat nya nyaman , makanan nya enak ; cocok untuk keluarga !", "equal"),
        ("tempat nya nyaman , minuman nya enak ; cocok untuk keluarga", "similar"),
        ("tempat nya nyaman , makanan nya enak", "contained"),
        (f"kemarin saya pergi ke sana dengan teman lama . {SENTENCE.lower()} kami pulang malam hari", "contained"),
    ],
)
def test_strict_rules(row: str, rule: str) -> None:
    assert find_leaks(["lain sekali", row], ["bukan ini", SENTENCE], "strict") == [Leak(1, rule, 1)]  # type: ignore[arg-type]


GUARANI = (
    "che ha\u2019e \u00f1andeva\u2019er\u00e3 o\u00f1e\u2019\u1ebd por\u00e3ve ko \u00e1rape mbo\u2019ehao\u0301pe avei"
)
"""Composed, with the apostrophe of typesetting and one accent that is not composed."""


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize("apostrophe", "'\u2019\u02bc\u00b4`\ua78c")
def test_a_leak_is_one_however_it_is_encoded(form: str, apostrophe: str) -> None:
    row = unicodedata.normalize(form, GUARANI.replace("\u2019", apostrophe).upper().replace("M", "\u200bM"))  # type: ignore[arg-type]
    assert find_leaks(["lain", row], [GUARANI], "strict") == [Leak(1, "equal", 0)]
    assert find_leaks([f"kemarin saya baca {row} di sebuah buku"], [GUARANI], "strict") == [Leak(0, "contained", 0)]
    assert find_shared([row, f"kemarin {row}"], [GUARANI]) == {"equal": [0], "contained": [1], "phrases": []}


def test_a_mark_tells_two_sentences_apart() -> None:
    assert find_shared(["x\u0303a pe", "xa pe", "\u0915\u093f", "\u0915"], ["xa pe", "\u0915"])["phrases"] == [1, 3]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("Enak", "Makanannya enak sekali."),
        ("a" * 19, "b" * 30 + "a" * 19),
        ("!!!", "???"),
        ("", ""),
        ("pelayanan lambat dan kotor", SENTENCE),
    ],
)
def test_strict_leaves_the_rest(row: str, sentence: str) -> None:
    assert find_leaks([row], [sentence], "strict") == []


def test_containment_begins_at_twenty_characters() -> None:
    assert find_leaks(["a" * 20], ["b" * 30 + "a" * 20], "strict") == [Leak(0, "contained", 0)]


def test_neighbouring_rows_with_the_same_sentence_all_go() -> None:
    part = "tempat nyaman makanan enak"
    rows = [part + " tetapi harga mahal sekali"] * 3 + ["saya kira mahal sekali juga " + part]
    assert [leak.row for leak in find_leaks(rows, ["lain sekali", part], "strict")] == [0, 1, 2, 3]


def test_ratio_begins_at_85() -> None:
    # The ratio of two texts of 20 letters that share 17 in order is 2 * 17 / 40 = 85 %; 16 make 80 %.
    assert find_leaks(["a" * 17 + "bcd"], ["a" * 17 + "xyz"], "strict") == [Leak(0, "similar", 0)]
    assert find_leaks(["a" * 16 + "bcde"], ["a" * 16 + "wxyz"], "strict") == []


def test_every_copy_goes_each_listed_once() -> None:
    rows = [SENTENCE, "lain", SENTENCE.upper(), SENTENCE]
    assert [leak.row for leak in find_leaks(rows, [SENTENCE, SENTENCE], "strict")] == [0, 2, 3]


@given(st.lists(st.text("ab", max_size=24), max_size=6), st.lists(st.text("ab", max_size=30), max_size=6))
def test_containment_is_that_of_every_pair(rows: list[str], sentences: list[str]) -> None:
    def part(a: str, b: str) -> bool:
        return len(a) >= 20 and a in b

    found = {leak.row for leak in find_leaks(rows, sentences, "strict")}
    assert {i for i, a in enumerate(rows) if any(part(a, b) or part(b, a) for b in sentences)} <= found


# --- planted copies

_WORDS = (
    "tempat makan hotel kamar harga pelayan menu rasa jalan kota malam suasana keluarga teman parkir pesan sangat "
    "sekali kurang enak mahal murah bersih kotor ramah lambat nyaman ramai jauh dekat luas sempit segar dingin saya "
    "kami mereka ini itu yang dan tetapi karena sudah belum akan bisa untuk dengan dari ke di pada kemarin besok"
)


def _sentence(rng: Random) -> str:
    words = [
        f"{word}nya" if rng.random() < 0.15 else word for word in rng.choices(_WORDS.split(), k=rng.randint(9, 20))
    ]
    return " ".join(words).capitalize() + "."


def _edited(sentence: str, kind: int, other: str, rng: Random) -> str:
    """Another case, clitics set apart, one half, or one word replaced by a word of another sentence."""
    words = sentence.split()
    if kind == 0:
        return sentence.upper()
    if kind == 1:
        return sentence.replace("nya", " nya").replace(".", " .").lower()
    if kind == 2:
        half = -(-len(words) // 2)
        return " ".join(words[:half] if rng.random() < 0.5 else words[-half:])
    words[rng.randrange(len(words))] = rng.choice(other.split())
    return " ".join(words)


def _found(sentences: list[str], rows: list[str], rng: Random) -> tuple[int, int]:
    """How many of 50 planted copies are found, and how many of the other rows."""
    copies = [
        _edited(sentence, i % 4, rng.choice(sentences), rng) for i, sentence in enumerate(rng.sample(sentences, 50))
    ]
    found = [leak.row for leak in find_leaks([*copies, *rows], sentences, "strict")]
    return sum(row < 50 for row in found), sum(row >= 50 for row in found)


@pytest.mark.parametrize("seed", range(5))
def test_planted_copies_are_found_and_nothing_else(seed: int) -> None:
    rng = Random(seed)
    sentences, rows = ([_sentence(rng) for _ in range(count)] for count in (200, 500))
    planted, others = _found(sentences, rows, rng)
    assert planted >= 48
    assert others == 0


# --- LT-SFT


def test_lt_sft_drops_the_nearest_row_of_each_test_sentence() -> None:
    rows = ["makanan nya ( sangat ) enak !", "makanan nya enak", "sama sekali lain"]
    assert find_leaks(rows, ["Makanan nya (sangat) enak!", "makananya enak"], "lt-sft") == [
        Leak(0, "nearest", 0),
        Leak(1, "nearest", 1),
    ]


def test_lt_sft_breaks_ties_by_text_and_then_by_row() -> None:
    assert find_leaks(["abd", "abc", "abc"], ["ab"], "lt-sft") == [Leak(1, "nearest", 0)]


# --- the whole


def _cleaned(mode: LeakRule) -> Cleaned:
    training: dict[Split, Examples] = {
        "train": examples("baik", SENTENCE.lower(), "lain"),
        "valid": examples("buruk sekali", "biasa"),
        "test": examples("terserah"),
    }
    evaluation: dict[EvaluationSplit, Examples] = {
        "valid": examples(SENTENCE), "test": examples("Buruk sekali!", "Terserah"),
    }  # fmt: skip
    return clean_training(NUSAX, training, evaluation, mode)


def test_strict_drops_for_validation_and_test_sentences() -> None:
    cleaned = _cleaned("strict")
    assert cleaned.train == Examples(("0", "2"), ("baik", "lain"), None, (0, 0))
    assert cleaned.valid == Examples(("1",), ("biasa",), None, (0,))
    assert cleaned.dropped == (
        Dropped("train", 1, "equal", SENTENCE.lower(), "valid", SENTENCE),
        Dropped("valid", 0, "equal", "buruk sekali", "test", "Buruk sekali!"),
        Dropped("test", 0, "equal", "terserah", "test", "Terserah"),
    )


def test_lt_sft_drops_for_test_sentences_only() -> None:
    assert [(row.split, row.row, row.rule) for row in _cleaned("lt-sft").dropped] == [
        ("valid", 0, "nearest"),
        ("test", 0, "nearest"),
    ]


def test_nothing_is_dropped_without_a_mode_or_from_another_benchmark() -> None:
    assert _cleaned("none").dropped == ()
    same = examples(SENTENCE)
    cleaned = clean_training(BENCHMARKS["archipelago"], {"train": same, "valid": same}, {"test": same}, "strict")
    assert (cleaned.train, cleaned.valid, cleaned.dropped) == (same, same, ())


def test_digest_is_of_texts_in_order_and_of_no_label() -> None:
    one, a, b = examples("a", "b"), examples("a"), examples("b")
    assert texts_digest({"test": one}) == texts_digest({"test": replace(one, labels=(1, 2), ids=("x", "y"))})
    others = [{"test": other} for other in (examples("b", "a"), examples("ab"), a, replace(one, pairs=("c", "d")))]
    apart = [{"test": a, "valid": b}, {"test": b, "valid": a}]
    assert len({texts_digest({"test": one}), *map(texts_digest, others), *map(texts_digest, apart)}) == 7


def test_digest_takes_the_splits_in_one_order_that_addresses_rely_on() -> None:
    by_hand = hashlib.sha256(b'[[["t"], null], [["v"], ["h"]]]').hexdigest()
    valid, test = replace(examples("v"), pairs=("h",)), examples("t")
    assert texts_digest({"valid": valid, "test": test}) == texts_digest({"test": test, "valid": valid}) == by_hand


@pytest.fixture(scope="module")
def real() -> tuple[dict[Split, Examples], dict[EvaluationSplit, Examples]]:
    root = os.environ["DEFTX_DATA_ROOT"]
    training = {split: read_training(NUSAX, found, split) for split, found in training_sources(NUSAX, root).items()}
    return training, {
        split: read_examples(NUSAX, evaluation_source(NUSAX, "id", split, root), "id", split)
        for split in EVALUATION_SPLITS
    }


@needs_real_files
@pytest.mark.parametrize(
    ("mode", "counts"),
    [("lt-sft", {"train": 383, "valid": 9, "test": 8}), ("strict", {"train": 429, "valid": 5, "test": 10})],
)
def test_real_leaks(
    real: tuple[dict[Split, Examples], dict[EvaluationSplit, Examples]], mode: LeakRule, counts: dict[Split, int]
) -> None:
    cleaned = clean_training(NUSAX, *real, mode)
    assert {split: sum(row.split == split for row in cleaned.dropped) for split in counts} == counts
    assert len(cleaned.train) == 11000 - counts["train"]
    assert len(cleaned.valid) == 1260 - counts["valid"]


@needs_real_files
def test_copies_planted_into_real_rows_are_found(
    real: tuple[dict[Split, Examples], dict[EvaluationSplit, Examples]],
) -> None:
    _, evaluation = real
    for seed in range(5):
        assert _found(list(evaluation["test"].texts), [], Random(seed))[0] >= 48
