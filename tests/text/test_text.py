"""Token blocks: exact ids, what is held out, and what too little text is answered with."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from deftx.config import TextSettings
from deftx.data import tokens as tokens_module
from deftx.data.blocks import Blocks, count_blocks, token_blocks
from deftx.data.corpora import every_line, read_lines
from deftx.data.tokens import tokenised
from deftx.errors import DataError
from deftx.sources.files import file_source

START, PAD, END, UNKNOWN = range(4)


def make_tokenizer(pad: str | None = "<pad>") -> PreTrainedTokenizerFast:
    """Every word wN is the token N + 4, between <s> and </s>."""
    words = {f"w{n}": n + 4 for n in range(200)}
    tokenizer = Tokenizer(WordLevel({"<s>": START, "<pad>": PAD, "</s>": END, "<unk>": UNKNOWN} | words, "<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", START), ("</s>", END)])
    special = {"pad_token": pad, "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=8, **special)  # type: ignore[no-untyped-call]


TOKENIZER = make_tokenizer()


def lines(*lengths: int) -> list[str]:
    """Line i has `lengths[i]` times the word wi."""
    return [" ".join([f"w{i}"] * length) for i, length in enumerate(lengths)]


def tokens(line: int, length: int) -> list[int]:
    return [START, *[line + 4] * length, END]


def held_out(blocks: Blocks) -> set[int]:
    """Lines with words among the validation tokens."""
    return {int(token) - 4 for token in np.unique(blocks.valid) if token > UNKNOWN}


def test_packed_blocks_are_passages_end_to_end_without_the_tail() -> None:
    blocks = token_blocks(lines(*[7] * 20), TOKENIZER, TextSettings(block=8, valid_fraction=0.05), seed=3)
    (held,) = held_out(blocks)
    stream = [token for line in range(20) if line != held for token in tokens(line, 7)]
    assert blocks.train.dtype == blocks.valid.dtype == np.int32
    assert blocks.train.tolist() == np.reshape(stream[: 19 * 9 // 8 * 8], (-1, 8)).tolist()
    assert blocks.valid.tolist() == [tokens(held, 7)[:8]]


def test_unpacked_blocks_are_passages_cut_or_padded() -> None:
    settings = TextSettings(block=8, pack=False, valid_fraction=0.34)
    blocks = token_blocks(lines(3, 6, 30), TOKENIZER, settings, seed=0)
    expected = [[*tokens(0, 3), PAD, PAD, PAD], tokens(1, 6), [START, *[6] * 6, END]]
    (held,) = held_out(blocks)
    assert blocks.valid.tolist() == [expected[held]]
    assert blocks.train.tolist() == [row for line, row in enumerate(expected) if line != held]


@given(
    lengths=st.lists(st.integers(8, 40), min_size=2, max_size=60),
    fraction=st.floats(0.01, 0.49),
    seed=st.integers(0, 2**32 - 1),
    pack=st.booleans(),
)
def test_sides_share_no_passage_and_repeat_exactly(lengths: list[int], fraction: float, seed: int, pack: bool) -> None:
    settings = TextSettings(block=8, pack=pack, valid_fraction=fraction)
    blocks = token_blocks(lines(*lengths), TOKENIZER, settings, seed)
    again = token_blocks(lines(*lengths), TOKENIZER, settings, seed)
    np.testing.assert_array_equal(blocks.train, again.train)
    np.testing.assert_array_equal(blocks.valid, again.valid)
    held = max(1, round(fraction * len(lengths)))
    assert len(held_out(blocks)) == held
    assert not held_out(blocks) & held_out(Blocks(train=blocks.valid, valid=blocks.train))
    if not pack:
        assert (len(blocks.train), len(blocks.valid)) == (len(lengths) - held, held)


@given(
    passages=st.integers(0, 60),
    block=st.integers(8, 40),
    pack=st.booleans(),
    fraction=st.floats(0.01, 0.49),
    limit=st.none() | st.integers(2, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_are_counted_as_they_are_cut(
    passages: int, block: int, pack: bool, fraction: float, limit: int | None, seed: int
) -> None:
    text = lines(*Random(seed).choices(range(30), k=passages))
    settings = TextSettings(block=block, pack=pack, valid_fraction=fraction, max_lines=limit)
    try:
        blocks = token_blocks(text, TOKENIZER, settings, seed)
    except DataError as error:
        with pytest.raises(DataError, match=f"^{re.escape(str(error))}$"):
            count_blocks(text, TOKENIZER, settings, seed)
    else:
        assert count_blocks(text, TOKENIZER, settings, seed)[:2] == (len(blocks.train), len(blocks.valid))


def test_blocks_are_counted_without_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deftx.data.blocks.np.full", None)
    monkeypatch.setattr("deftx.data.blocks.array", None)
    for pack, counts in ((True, (19 * 9 // 8, 1, 20)), (False, (19, 1, 20))):
        assert count_blocks(lines(*[7] * 20), TOKENIZER, TextSettings(block=8, pack=pack), seed=3) == counts


def test_held_out_passages_depend_on_the_seed() -> None:
    settings = TextSettings(block=8, valid_fraction=0.1)
    drawn = {frozenset(held_out(token_blocks(lines(*[9] * 100), TOKENIZER, settings, seed))) for seed in range(5)}
    assert len(drawn) == 5


def test_no_more_lines_than_asked_for() -> None:
    settings = TextSettings(block=8, max_lines=3)
    cut = token_blocks(lines(*[9] * 10), TOKENIZER, settings, seed=0)
    whole = token_blocks(lines(*[9] * 3), TOKENIZER, settings, seed=0)
    np.testing.assert_array_equal(cut.train, whole.train)
    np.testing.assert_array_equal(cut.valid, whole.valid)


@pytest.mark.parametrize(
    ("lengths", "settings", "message"),
    [
        ((), TextSettings(block=8), "one training block: 0 tokens in 0 passages, 8 tokens are needed"),
        ((20,), TextSettings(block=8), "one training block: 0 tokens in 0 passages, 8 tokens are needed"),
        ((2, 2), TextSettings(block=8), "one training block: 4 tokens in 1 passages, 8 tokens are needed"),
        ((5,) * 9, TextSettings(block=8), "one validation block: 7 tokens in 1 passages, 8 tokens are needed"),
        ((9,), TextSettings(block=8, pack=False), "one training block: 0 passages and 0 tokens, at least 1 passage"),
    ],
)
def test_too_little_text(lengths: tuple[int, ...], settings: TextSettings, message: str) -> None:
    with pytest.raises(DataError) as error:
        token_blocks(lines(*lengths), TOKENIZER, settings, seed=0)
    assert message in str(error.value)


# --- lines that are no passages


def sentences(count: int) -> list[str]:
    """Sentence i has ten words wN, drawn by i."""
    return [" ".join(f"w{n}" for n in Random(i).choices(range(200), k=10)) + "." for i in range(count)]


SENTENCES = sentences(300)
"""Of 11 tokens each, the full stop with them, in about 40 characters."""


@pytest.mark.parametrize("end", [" ", "\r", "\u2028", "\u2029", "\x85", "\x0c", "\r\r"])
def test_a_corpus_in_one_line_is_cut_at_other_line_ends_and_after_sentences(end: str) -> None:
    settings, text = TextSettings(block=16, valid_fraction=0.1), end.join(SENTENCES)
    blocks = token_blocks([text], TOKENIZER, settings, seed=0)
    train, valid, passages = count_blocks([text], TOKENIZER, settings, seed=0)
    assert (len(blocks.train), len(blocks.valid)) == (train, valid)
    # a passage has whole sentences of about 48 characters: two in 128, once three; between other line ends one
    assert passages == (149 if end == " " else 300)
    assert train + valid in range((300 * 11 + passages * 2) // 16 - 1, (300 * 11 + passages * 2) // 16 + 1)
    assert valid in range(train // 10, train // 8)


def test_what_is_cut_ends_with_a_sentence_and_nothing_is_lost() -> None:
    text = " ".join(SENTENCES)
    blocks = token_blocks([text], TOKENIZER, TextSettings(block=40, pack=False, valid_fraction=0.1), seed=0)
    words = [row[(row != PAD) & (row != START) & (row != END)].tolist() for row in (*blocks.train, *blocks.valid)]
    alone = [TOKENIZER(sentence, add_special_tokens=False)["input_ids"] for sentence in SENTENCES]
    assert sorted(word for row in words for word in row) == sorted(word for row in alone for word in row)
    assert {row[-1] for row in words} == {UNKNOWN}, "the full stop"
    assert {len(row) for row in words} <= {22, 33, 44}


def test_without_spaces_a_line_is_cut_between_letters() -> None:
    settings = TextSettings(block=8, pack=False, valid_fraction=0.1)
    assert count_blocks(["x" * 3200], TOKENIZER, settings, seed=0) == (90, 10, 100)


def test_what_is_left_over_goes_with_the_passage_before_it() -> None:
    settings = TextSettings(block=8, pack=False, valid_fraction=0.1)  # 32 characters a passage
    assert count_blocks(["x" * (3200 + 15)], TOKENIZER, settings, seed=0)[2] == 100
    assert count_blocks(["x" * (3200 + 16)], TOKENIZER, settings, seed=0)[2] == 101


def test_lines_that_fill_their_blocks_are_never_cut() -> None:
    """Ordinary texts keep their blocks bit for bit: also two lines, and lines with other ends in them."""
    text = [" ".join(SENTENCES[:150]), "\u2028".join(SENTENCES[150:])]
    settings = TextSettings(block=16, valid_fraction=0.1)
    assert count_blocks(text, TOKENIZER, settings, seed=0)[2] == 2
    held = token_blocks(text, TOKENIZER, settings, seed=0)
    whole = {tuple(TOKENIZER(line)["input_ids"][:16]) for line in text}
    assert {tuple(held.train[0].tolist()), tuple(held.valid[0].tolist())} == whole


def test_no_more_passages_than_asked_for_when_lines_are_cut() -> None:
    settings = TextSettings(block=16, valid_fraction=0.1, max_lines=50)
    assert count_blocks([" ".join(SENTENCES)], TOKENIZER, settings, seed=0)[2] == 50


@pytest.mark.parametrize(
    ("content", "lines_read"),
    [
        ("w1\rw2\r\rw3\r", ["w1", "w2", "", "w3", ""]),
        ("w1\u2028w2\u2029w3\x85w4", ["w1", "w2", "w3", "w4"]),
        ("w1\rw2\r\nw3\rw4\rw5", ["w1", "w2", "w3", "w4", "w5"]),
        ("w1\nw2\u2028w3\nw4\rw5\n", ["w1", "w2\u2028w3", "w4\rw5", ""]),  # line feeds are the most
        ("w1\r\nw2\r\n", ["w1", "w2", ""]),
        ("w1\x0cw2\x0bw3", ["w1\x0cw2\x0bw3"]),
    ],
)
def test_other_line_ends_end_lines_where_they_are_the_most(tmp_path: Path, content: str, lines_read: list[str]) -> None:
    (tmp_path / "ace.txt").write_bytes(content.encode())
    source = file_source(str(tmp_path / "ace.txt"))
    assert list(every_line(source)) == lines_read
    assert list(read_lines(source)) == [line for line in lines_read if line]


# --- long texts


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("longest", [None, 50])
def test_a_long_text_has_the_tokens_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, special: bool, longest: int | None
) -> None:
    texts = ["w1 w2", " ".join(SENTENCES), "", "w3", "  ".join(SENTENCES[:40])]
    whole = TOKENIZER(texts, add_special_tokens=special, truncation=longest is not None, max_length=longest)
    monkeypatch.setattr(tokens_module, "_LONG", 100)
    monkeypatch.setattr(tokens_module, "_CHARACTERS", 60)
    found: dict[int, list[int]] = {number: [] for number in range(5)}
    parts = list(tokenised(texts, TOKENIZER, longest=longest, special=special))
    for number, ids in parts:
        found[number] += ids
    assert [*found.values()] == whole["input_ids"]
    assert [number for number, _ in parts] == sorted(number for number, _ in parts)
    if longest is None:
        assert max(len(ids) for _, ids in parts) <= 60 / 2


@pytest.mark.parametrize("kind", ["unigram", "bpe", "byte-level", "wordpiece"])
def test_pieces_change_no_token_whatever_the_tokenizer(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    text = " ".join(" ".join(Random(i).choices(("ureueng", "jak", "keude,", "kupi.", "nyan"), k=8)) for i in range(40))
    tokenizer = trained(kind, text)
    whole = tokenizer(text)["input_ids"]
    monkeypatch.setattr(tokens_module, "_LONG", 300)
    monkeypatch.setattr(tokens_module, "_CHARACTERS", 100)
    parts = list(tokenised([text], tokenizer))
    assert len(parts) > 10
    assert [token for _, ids in parts for token in ids] == whole


def trained(kind: str, text: str) -> PreTrainedTokenizerFast:
    special: dict[str, Any] = {"special_tokens": ["<s>", "</s>", "<unk>"], "vocab_size": 60, "show_progress": False}
    space = pre_tokenizers.Metaspace()
    tokenizer, trainer, words = {
        "unigram": (Unigram(), trainers.UnigramTrainer(unk_token="<unk>", **special), space),
        "bpe": (BPE(unk_token="<unk>"), trainers.BpeTrainer(**special), space),
        "byte-level": (BPE(), trainers.BpeTrainer(**special), pre_tokenizers.ByteLevel(add_prefix_space=False)),
        "wordpiece": (
            WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer(**special), pre_tokenizers.BertPreTokenizer()
        ),
    }[kind]  # fmt: skip
    made = Tokenizer(tokenizer)
    made.pre_tokenizer = words
    made.train_from_iterator([text], trainer)
    around = [(name, made.token_to_id(name)) for name in ("<s>", "</s>")]
    made.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")  # type: ignore[no-untyped-call]


def test_padding_needs_a_pad_token() -> None:
    for of in (token_blocks, count_blocks):
        with pytest.raises(DataError, match="no padding token"):
            of(lines(9, 9), make_tokenizer(pad=None), TextSettings(block=8, pack=False), seed=0)
