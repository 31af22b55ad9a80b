"""The form in which texts, labels and ids are compared: what is one in it, what is not, and long texts in pieces."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deftx.data import normal as module
from deftx.data.normal import letters, normal
from deftx.data.pieces import pieces

TRICKY = (
    "aAäßıİſKΣςﬁ½²'`´’ʼʻꞌꞋ＇ʾ\u0300\u0303\u0323\u0345\u0308\u034f\u200b\u200c\u200d\ufeff\u00ad\ufe0f\u3164\ufff9 \t_.!"
    "ᄀ\u1161\u11a8가ｶﾞ\u093f\u094dक\u0f73\u1ea1\U0001d15e\U0001e900\U000e0041"
)
TEXT = st.text() | st.text(st.sampled_from(TRICKY)) | st.text(st.sampled_from(TRICKY) | st.characters())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ñembotavy", "n\u0303embotavy"),
        ("STRASSE", "straße"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("ｆｕｌｌ ① ﬁ", "full 1 fi"),
        ("na\u200bme\u00ad", "\ufeffname"),
        ("no\u00a0break", "no break"),
        ("a\u0323\u0302", "\u1ead"),
        ("a\u0302\u200d\u0323", "\u1ead"),
        ("가", "\u1100\u1161"),
        ("\u0130", "i\u0307"),
    ],
)
def test_spellings_of_one_thing_are_one(one: str, other: str) -> None:
    assert normal(one) == normal(other)


@pytest.mark.parametrize("apostrophe", "`´’‘‛ʼʻʽʹʾʿꞌꞋ′＇׳՚ߴ")
def test_apostrophes_of_every_kind_are_alike_and_none_is_a_letter(apostrophe: str) -> None:
    assert normal(f"Mbo{apostrophe}ehao") == "mbo'ehao"
    assert letters(f"Mbo{apostrophe}ehao") == "mboehao"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ã", "a"), ("x\u0303", "x"), ("कि", "क"), ("क\u094d", "क"), ("שָ", "ש"), ("ấ", "â"), ("ı", "i"), ("a'", "a"),
        ("-", "+"), ("1.0", "1"), ("a b", "ab"), ("o", "0"),
    ],
)  # fmt: skip
def test_what_a_reader_tells_apart_stays_apart(one: str, other: str) -> None:
    assert normal(one) != normal(other)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Che ha’e, ñande!", "chehaeñande"),
        ("n\u0303 x\u0303 a", "ñx\u0303a"),
        ("कि\u200dताब।", "किताब"),
        ("\u0303a - \u0303b_c", "abc"),  # a mark without a letter
        ("👍\ufe0f 1\ufe0f\u20e3", "1"),
        ("...", ""),
        ("A B-7", "ab7"),
    ],
)
def test_sentences_are_compared_by_letters_with_their_marks_and_digits(text: str, kept: str) -> None:
    assert letters(text) == kept


@given(TEXT)
@example("´\u0323")
@example("\u0345\u0323α")
@example("\u0f73\u0f71")
def test_the_form_is_its_own_and_that_of_every_normalisation(text: str) -> None:
    assert normal(normal(text)) == normal(text)
    for form in ("NFC", "NFD"):
        assert normal(unicodedata.normalize(form, text)) == normal(text)  # type: ignore[arg-type]
        assert letters(unicodedata.normalize(form, text)) == letters(text)  # type: ignore[arg-type]
    assert normal(unicodedata.normalize("NFD", text).casefold()) == normal(text)
    assert unicodedata.is_normalized("NFKC", normal(text))


@given(TEXT, st.sampled_from("\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\ufe0f\u061c\U000e0041"), st.integers(0, 9))
def test_what_has_no_width_changes_nothing(text: str, character: str, at: int) -> None:
    assert normal(text[:at] + character + text[at:]) == normal(text)


@given(st.text(), st.sampled_from("aeiñxßकש가"), st.sampled_from("\u0301\u0303\u0323\u093f\u094d\u05b8"))
def test_a_mark_is_never_lost(before: str, letter: str, mark: str) -> None:
    text = before + letter
    assert letters(text + mark) != letters(text)
    assert normal(text + mark) != normal(text)


@given(st.text(st.sampled_from("abc de.\n" + TRICKY), max_size=300), st.integers(40, 90))
def test_pieces_joined_are_the_text_and_normalise_as_the_text(text: str, longest: int) -> None:
    cut = list(pieces(text, longest))
    assert "".join(cut) == text
    assert all(0 < len(piece) <= longest for piece in cut) or text == ""
    assert all(len(piece) >= longest // 2 for piece in cut[:-1])
    with pytest.MonkeyPatch.context() as patch:
        whole = normal(text), letters(text)
        patch.setattr(module, "_LONG", longest)
        assert (normal(text), letters(text)) == whole


@pytest.mark.parametrize(
    ("text", "longest", "cut"),
    [
        ("One two. Three four five", 20, ["One two. Three four", " five"]),  # no sentence ends in the second half
        ("One two three. Four five", 20, ["One two three.", " Four five"]),
        ("He said: “Go!” And went.", 20, ["He said: “Go!”", " And went."]),
        ("天地玄黄。宇宙洪荒。日月盈昃", 12, ["天地玄黄。宇宙洪荒。", "日月盈昃"]),
        ("aaaaaaaaaaaa", 5, ["aaaaa", "aaaaa", "aa"]),
        ("aaaa\u0303\u0323aaaa", 5, ["aaa", "a\u0303\u0323aa", "aa"]),
        ("a  b", 3, ["a", "  b"]),
        ("", 3, [""]),
    ],
)
def test_a_text_is_cut_after_a_sentence_else_between_words_else_between_letters(
    text: str, longest: int, cut: list[str]
) -> None:
    assert list(pieces(text, longest)) == cut
