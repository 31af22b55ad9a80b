"""Token blocks: exact ids, what is held out, and what too little text is answered with."""

from __future__ import annotations

import re
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from deftx.config import TextSettings
from deftx.data.blocks import Blocks, count_blocks, token_blocks
from deftx.errors import DataError

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


def test_padding_needs_a_pad_token() -> None:
    for of in (token_blocks, count_blocks):
        with pytest.raises(DataError, match="no padding token"):
            of(lines(9, 9), make_tokenizer(pad=None), TextSettings(block=8, pack=False), seed=0)
