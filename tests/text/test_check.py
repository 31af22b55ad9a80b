"""The text check: every count by hand, each warning and what is enough, the command, and the check as a stage."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.patience import PATIENCE
from support.plans import World as Workers
from support.plans import make_planner, make_schedule, make_space, simulate
from support.tiny import make_tokenizer, write_backbone
from support.world import World, write_files
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from deftx.cli.app import app
from deftx.config import TextSettings, Training
from deftx.data import leaks, normal, text_check, tokens
from deftx.data.blocks import token_blocks
from deftx.data.catalogue import benchmark
from deftx.data.corpora import every_line, read_lines
from deftx.data.examples import evaluation_source, read_examples
from deftx.data.text_check import Lines, TextReport, check_text
from deftx.data.text_report import Sign
from deftx.errors import DataError
from deftx.method.make import make
from deftx.sources.files import file_source, read_text
from deftx.sources.published import resolve_folder
from deftx.stages.kinds import checked_text
from deftx.stages.settings import CheckSettings, TextStageSettings
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from orchestrator.plan.cost import estimate

WORDS = make_tokenizer()
"""Knows w0 to w44, each one token; a passage has two more, <s> and </s>."""
TRAINING = Training(max_steps=10, batch_size=2)
SENTENCE = "Rumoh makan nyan mangat that, teuma yum jih meuhai!"
THIRTY = "keude kupi nyan jai that ureueng jak"
"""Of 30 letters."""
needs_real_files = pytest.mark.skipif(not os.environ.get("DEFTX_DATA_ROOT"), reason="DEFTX_DATA_ROOT is not set")


def check(*lines: str, evaluation: list[str] | None = None, training: Training = TRAINING, **text: Any) -> TextReport:
    shape = TextSettings(**{"block": 8, "valid_fraction": 0.25, **text})
    return check_text("ace", lines, WORDS, shape, training, evaluation=evaluation)


def pieces() -> PreTrainedTokenizerFast:
    """One token for each letter from a to e; a word with any other letter is unknown as a whole."""
    letters = [*"abcde", *(f"##{letter}" for letter in "abcde")]
    vocabulary = {name: number for number, name in enumerate(["<unk>", *letters])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")  # type: ignore[no-untyped-call]


# --- counts


def test_every_count_of_a_small_text() -> None:
    found = check("w1 w2 w3", "", "w1  w2 w3 ", "w4 ü x", "w5 w6 w7 w8", "w9\n", evaluation=["w1 w2 w3", "w7"])
    assert found == TextReport(
        language="ace", passages=5, bytes=8 + 9 + 7 + 11 + 2,
        signs={s: Lines() for s in get_args(Sign)},
        repeated=Lines(count=1, first=(3,)), sentences=2, equal=Lines(), contained=Lines(),
        phrases=Lines(count=2, first=(1, 3)), words=14, tokens=14, unknown_tokens=2, long_words=0, cut=Lines(),
        block=8, train_blocks=0, valid_blocks=0, batch_size=2, planned_steps=10,
        problem=found.problem,
    )  # fmt: skip
    assert str(found.problem).startswith("too little text for one validation block: ")
    assert (found.unique, found.tokens_per_word, found.unknown_share) == (4, 1.0, 2 / 14)


def test_blocks_and_steps_are_those_of_the_text_stage() -> None:
    lines, shape = [f"w{n % 45} w1 w2" for n in range(400)], TextSettings(block=8, valid_fraction=0.1)
    training = Training(epochs=3, min_steps=0, max_steps=10_000, batch_size=16)
    blocks = token_blocks(lines, WORDS, shape, seed=5)
    found = check_text("ace", lines, WORDS, shape, training, seed=5)
    # 360 passages of 3 + 2 tokens in blocks of 8, and 40 held-out ones
    assert (found.train_blocks, found.valid_blocks) == (len(blocks.train), len(blocks.valid)) == (225, 25)
    assert (found.steps_per_pass, found.planned_steps, found.passes, found.good_for) == (15, 45, 3.0, 1500)
    assert (
        found.summary
        == "ace: 400 passages, 3.5 kB, 1.0 tokens a word, 225 blocks of 8; good for about 1,500 steps of 16"
    )


def test_pieces_of_words() -> None:
    found = check_text("ace", ["abcde ab", "abcd x a"], pieces(), TextSettings(block=8, valid_fraction=0.25), TRAINING)
    # 5 + 2, and 4 + the unknown one + 1
    assert (found.words, found.tokens, found.unknown_tokens, found.long_words) == (5, 13, 1, 1)
    assert (found.tokens_per_word, found.long_word_share) == (2.6, 0.2)


def test_a_passage_longer_than_its_block_is_cut_and_counted() -> None:
    six, seven = " ".join(["w1"] * 6), " ".join(["w2"] * 7)
    found = check(six, seven, six, seven, pack=False)  # 8 tokens with the two around, and 9
    assert (found.cut, found.train_blocks, found.valid_blocks) == (Lines(count=2, first=(2, 4)), 3, 1)
    assert check(six, seven, pack=True, valid_fraction=0.4).cut == Lines()


def test_only_the_passages_that_will_be_read_are_looked_at() -> None:
    found = check("", "w1", "w1", "w2", "w\ufffd", max_lines=3, evaluation=["w2"])
    assert (found.passages, found.repeated) == (3, Lines(count=1, first=(3,)))
    assert found.phrases == Lines(count=1, first=(4,))
    assert found.signs["replacement"] == Lines()


@pytest.mark.parametrize(
    ("sign", "bad", "good"),
    [
        ("replacement", "caf\ufffd", "café"),
        ("mojibake", "café".encode().decode("latin-1"), "CAFÉ"),
        ("mojibake", "it’s – “so”".encode().decode("cp1252", "ignore"), "it’s – “so” â”"),
        ("mojibake", "Ñandé ë".encode().decode("latin-1"), "AKYTÂ’AI NÃO Ã»"),
        ("mojibake", "\ufeffw1".encode().decode("cp1252"), "ï»"),
        ("control", "w1\x07w2", "w1\tw2"),
        ("control", "w1\x93w2\x94", "w1\x0cw2"),
        ("byte-order mark", "w1 \ufeffw2", "w1\u200bw2"),
        ("not NFC", "cafe\u0301", "caf\u00e9"),
    ],
)
def test_a_sign_of_wrong_encoding_is_seen_and_a_proper_text_has_none(sign: str, bad: str, good: str) -> None:
    found = check("w1", "", bad, good, bad, good, bad, bad)
    assert found.signs[sign] == Lines(count=4, first=(3, 5, 7))  # type: ignore[index]
    assert not any(lines.count for lines in check("w1", good).signs.values())


def test_special_tokens_in_plain_text_are_a_sign_with_their_lines() -> None:
    found = check("w1 <mask> w2", "", "w1<pad>", "mask </ s> <S> [MASK]", "</s>", "<unk>w")
    assert found.signs["special token"] == Lines(count=4, first=(1, 3, 5))
    assert found.warnings[-2] == (
        "ace: 4 of 5 passages (80 %) spell special tokens (of the mask, of the end of a text) and are read as these: "
        "take them out (lines 1, 3, 5, ...)"
    )
    assert not any(lines.count for lines in check("w1", "<w2>").signs.values())


def test_a_tokenizer_without_special_tokens_has_none_in_the_text() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordPiece({"a": 0, "<unk>": 1})))  # type: ignore[no-untyped-call]
    found = check_text("ace", ["a", "a"], tokenizer, TextSettings(block=8), TRAINING)
    assert found.signs["special token"] == Lines()


def test_a_text_in_one_line_is_cut_and_told() -> None:
    """84 kB, which were `0 tokens in 0 passages`."""
    line = " ".join(f"w{n % 45} w1 w2." for n in range(7800))
    found = check(line, block=32, valid_fraction=0.05)
    assert (found.bytes, found.passages, found.problem) == (len(line), 1, None)
    assert (found.train_blocks, found.valid_blocks, found.cut_into) == (713, 38, 334)
    assert found.summary.startswith("ace: 334 passages, 84.")
    assert found.warnings[0].startswith(
        "ace: its one line was cut into 334 passages, at other line ends, after sentences"
    )
    assert check("w1 w2", "w3 w4", pack=False).cut_into is None


def test_the_mark_that_opens_a_file_is_no_part_of_its_text(tmp_path: Path) -> None:
    (tmp_path / "ace.txt").write_bytes("\ufeffw1\nw2\r\n".encode())
    lines = list(every_line(file_source(str(tmp_path / "ace.txt"))))
    assert lines == ["w1", "w2", ""]
    assert check(*lines).signs["byte-order mark"] == Lines()


def test_numbers_of_lines_are_the_files_and_passages_are_what_training_reads(tmp_path: Path) -> None:
    (tmp_path / "ace.txt").write_text("\n w1 \n\n\x85\nw2\n", encoding="utf-8")
    source = file_source(str(tmp_path / "ace.txt"))
    assert [line for line in every_line(source) if line] == list(read_lines(source)) == ["w1", "w2"]
    assert list(every_line(source)).index("w2") == 4


def test_a_file_in_another_encoding_is_an_error_with_line_byte_and_what_is_right(tmp_path: Path) -> None:
    path = tmp_path / "ace.txt"
    path.write_bytes("w1\nw2\ncafé w3\n".encode("latin-1"))
    with pytest.raises(DataError) as error:
        read_text(file_source(str(path)))
    assert str(error.value) == (f"{path}, line 3: not UTF-8 (byte 0xe9), at byte 9 of the file: save it as UTF-8")


WIDE = "Rumoh makan nyan mangat that,\nña\u0303 ha\u2019e – 1.\n"


@pytest.mark.parametrize(
    "text", [WIDE, "Это предложение, и ещё одно.\n", "यह एक वाक्य है।\n", "Tôi đã mua ở cửa hàng.\n", "good 😀 day\n"]
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_text_in_utf_16_without_a_mark_is_told_as_such(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "ace.txt"
    path.write_bytes((text * 3).encode(encoding))
    name = encoding[:6].upper()
    with pytest.raises(DataError) as error:
        list(every_line(file_source(str(path))))
    assert str(error.value) == f"{path}: looks like {name} without a byte-order mark: save it as UTF-8"
    path.write_bytes((WIDE * 3).encode("utf-16"))
    with pytest.raises(DataError, match=r"ace\.txt: looks like UTF-16: save it as UTF-8"):
        file_source(str(path), text=True)


@pytest.mark.parametrize("zeros", [1, 5])
def test_a_zero_byte_alone_is_a_control_character_and_no_other_encoding(tmp_path: Path, zeros: int) -> None:
    path = tmp_path / "ace.txt"
    path.write_bytes(WIDE.encode() * 3 + b"w1\0w2\n" * zeros)
    found = check(*every_line(file_source(str(path))))
    assert found.signs["control"] == Lines(count=zeros, first=tuple(range(7, 7 + zeros))[:3])


def test_no_text_is_an_error() -> None:
    with pytest.raises(DataError, match="ace: there is no text"):
        check("", "  ")


# --- evaluation sentences


@pytest.mark.parametrize(
    ("line", "how"),
    [
        (SENTENCE, "equal"),
        (SENTENCE.upper(), "equal"),
        ("rumoh makan nyan: mangat that teuma yum jih meuhai", "equal"),
        (f"Kheun ureueng: «{SENTENCE.lower()}» — meunan.", "contained"),
        (SENTENCE[:-8], None),
        ("Rumoh sakit nyan rayek that, teuma yum jih meuhai!", None),
        (THIRTY[:-1], "phrases"),  # as many as a turn of phrase may have
        (THIRTY, "equal"),
        (f"{THIRTY[:-1]} {THIRTY}", "contained"),  # the longest counts
        (f"{THIRTY[:-1]} nyan.", "phrases"),
        ("Jroh that!", "phrases"),  # a sentence of its own
        ("Nyan jroh that keu kamoe.", None),
    ],
)
def test_an_evaluation_sentence_is_found_whatever_its_case_and_punctuation(line: str, how: str | None) -> None:
    sentences = ["jroh that", THIRTY[:-1], SENTENCE, THIRTY, "..."]
    found = check("w1 w2", "", line, "...", evaluation=sentences)
    assert (found.sentences, found.shared) == (5, 0 if how is None else 1)
    for name in ("equal", "contained", "phrases"):
        assert getattr(found, name) == Lines.of([3] if name == how else [])


@given(
    st.lists(
        st.sampled_from(["w1 w2", "w1  w2.", "ña ẽ", "\u200b", "x" * 40, SENTENCE, THIRTY, "</s>", "\n", "e\u0301"])
    ),
    st.integers(0, 3),
)
@settings(max_examples=60)
def test_a_long_text_looked_at_in_pieces_has_the_same_report(parts: list[str], seed: int) -> None:
    lines = " ".join(["w1 w2 w3 w4 w5 w6", *parts]).split("\n")
    whole = check(*lines, evaluation=[SENTENCE, THIRTY, "w1 w2"])
    with pytest.MonkeyPatch.context() as patch:
        for module in (text_check, leaks, tokens, normal):
            patch.setattr(module, "_LONG", 110 + seed)  # half of it has a space: only between words is a cut the same
        patch.setattr(tokens, "_CHARACTERS", 100)
        patch.setattr(text_check, "_WORDS", 3)
        patch.setattr(text_check, "_KNOWN", 2)
        assert check(*lines, evaluation=[SENTENCE, THIRTY, "w1 w2"]) == whole


def test_without_evaluation_sentences_nothing_is_compared() -> None:
    found = check(SENTENCE)
    assert (found.sentences, found.equal.count, found.contained.count) == (None, 0, 0)


@given(
    st.lists(st.sampled_from(["w1", "w1 ", "w1  w2", "w1 w2", "W1", "", "w3 \ufffd", "a\u0301", SENTENCE]), min_size=1),
    st.integers(0, 9),
)
@settings(max_examples=60)
def test_repeats_and_the_rest_are_all_lines_in_any_order(lines: list[str], seed: int) -> None:
    if not any(lines):
        return
    shuffled = Random(seed).sample(lines, len(lines))
    one, other = (check(*some, evaluation=[SENTENCE]) for some in (lines, shuffled))
    assert one.unique == len({" ".join(line.split()) for line in lines if line})
    assert one.unique + one.repeated.count == one.passages == sum(map(bool, lines))
    for name in ("passages", "bytes", "words", "tokens", "unknown_tokens", "long_words", "unique"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("repeated", "equal", "contained"):
        assert getattr(one, name).count == getattr(other, name).count
    assert {s: found.count for s, found in one.signs.items()} == {s: found.count for s, found in other.signs.items()}


# --- words


SOUND = TextReport(
    language="ace", passages=10_000, bytes=1_700_000, signs={}, repeated=Lines(), sentences=500, equal=Lines(),
    contained=Lines(), words=100_000, tokens=210_000, unknown_tokens=0, long_words=0, cut=Lines(), block=256,
    train_blocks=3210, valid_blocks=160, batch_size=8, planned_steps=30_000,
)  # fmt: skip


def test_a_sound_text_has_a_summary_and_no_warning() -> None:
    assert SOUND.summary == (
        "ace: 10,000 passages, 1.7 MB, 2.1 tokens a word, 3,210 blocks of 256; good for about 40,000 steps of 8"
    )
    assert SOUND.warnings == ()
    phrases = SOUND.model_copy(update={"phrases": Lines(count=2)})
    assert phrases.summary == f"{SOUND.summary}; 2 with a short evaluation sentence"


WARNINGS: list[tuple[dict[str, Any], str]] = [
    ({"equal": Lines(count=4, first=(3, 7, 9))},
     "4 of 10,000 passages (0.04 %) are sentences of its evaluation files (lines 3, 7, 9, ...); none may: "),
    ({"contained": Lines(count=1, first=(12,))}, "1 of 10,000 passages (0.01 %) hold sentences of its "),
    ({"phrases": Lines(count=101, first=(3, 7, 9))},
     "101 of 10,000 passages (1 %) are or hold short sentences of its evaluation files (lines 3, 7, 9, ...); 1 % at "),
    ({"train_blocks": 0, "valid_blocks": 0, "problem": "too little text for one training block: 5 tokens in ..."},
     "too little text for one training block: 5 tokens in ..."),
    ({"train_blocks": 200, "planned_steps": 30_000},
     "too little text: 30,000 planned steps of 8 read its 200 blocks 1,200 times; 100 times at most is right, which "
     "takes 2,400 blocks (about 120,000 passages) or at most 2,500 steps"),
    ({"cut_into": 400}, "its 10,000 lines were cut into 400 passages, at other line ends, after sentences or between "
     "words, since whole lines do not fill a block of each side; a line a passage (a sentence, a paragraph or an "
     "article) is right"),
    ({"valid_blocks": 9},
     "only 9 held-out blocks pick the checkpoint, which makes it chance; at least 10 are right: more text or a larger "
     "text.valid_fraction"),
    ({"cut": Lines(count=501, first=(1, 2, 3))},
     "501 of 10,000 passages (5 %) are longer than a block of 256 tokens, and the rest is never read "
     "(lines 1, 2, 3, ...); 5 % at most is right: "),
    ({"signs": {"replacement": Lines(count=2, first=(3, 4))}}, "2 of 10,000 passages (0.02 %) hold U+FFFD, "),
    ({"signs": {"mojibake": Lines(count=1, first=(3,))}}, "1 of 10,000 passages (0.01 %) look like UTF-8 read as "),
    ({"signs": {"control": Lines(count=1, first=(3,))}}, "1 of 10,000 passages (0.01 %) hold control characters: "),
    ({"signs": {"byte-order mark": Lines(count=1, first=(3,))}}, "1 of 10,000 passages (0.01 %) hold a byte-order "),
    ({"signs": {"control": Lines(count=10_000, first=(1, 2, 3))}}, "10,000 of 10,000 passages (100 %) hold control "),
    ({"signs": {"control": Lines(count=9_960, first=(1, 2, 3))}}, "9,960 of 10,000 passages (100 %) hold control "),
    ({"passages": 4_000_000, "signs": {"control": Lines(count=1, first=(1,))}},
     "1 of 4,000,000 passages (0.000025 %) hold control "),
    ({"signs": {"special token": Lines(count=1, first=(3,))}}, "1 of 10,000 passages (0.01 %) spell special tokens "),
    ({"signs": {"not NFC": Lines(count=101, first=(3,))}}, "101 of 10,000 passages (1 %) are not in Unicode's normal "),
    ({"repeated": Lines(count=501, first=(3, 5, 8))},
     "501 of 10,000 passages (5 %) repeat an earlier one, held-out ones among them (lines 3, 5, 8, ...); 5 % at most "
     "is right: keep each passage once"),
    ({"tokens": 401_000}, "4.0 tokens a word; 4 at most is right: the backbone's tokenizer hardly knows the language"),
    ({"unknown_tokens": 2101}, "1.0 % of the tokens are unknown to the backbone's tokenizer; 1 % at most is right: "),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WARNINGS)
def test_each_fault_is_one_sentence_with_language_number_and_what_is_right(change: dict[str, Any], words: str) -> None:
    (warning,) = SOUND.model_copy(update=change).warnings
    assert warning.startswith(f"ace: {words}")
    assert "\n" not in warning


JUST_RIGHT: list[dict[str, Any]] = [
    {"train_blocks": 2400}, {"valid_blocks": 10}, {"cut": Lines(count=500)}, {"tokens": 400_000},
    {"phrases": Lines(count=100)}, {"repeated": Lines(count=500)}, {"unknown_tokens": 2100},
    {"signs": {"not NFC": Lines(count=100)}},
]  # fmt: skip


@pytest.mark.parametrize("change", JUST_RIGHT)
def test_what_a_warning_asks_for_is_enough(change: dict[str, Any]) -> None:
    assert SOUND.model_copy(update=change).warnings == ()


def test_a_check_survives_json_and_holds_its_words_for_other_readers() -> None:
    for found in (SOUND, SOUND.model_copy(update=WARNINGS[0][0]), check("w1 w2 x", "w1 w2 x", evaluation=["w1"])):
        assert TextReport.model_validate_json(found.model_dump_json()) == found
        assert found.model_dump()["summary"] == found.summary
        assert found.model_dump()["warnings"] == found.warnings


def test_too_little_text_for_one_block_is_a_warning_and_no_error() -> None:
    found = check("w1 w2")
    assert (found.train_blocks, found.good_for) == (0, 0)
    assert found.warnings[0].startswith("ace: too little text for one training block: ")


# --- the command


def test_the_command_prints_counts_and_warnings(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "tiny")
    (tmp_path / "ace.txt").write_text("w1 w2\n" * 1600 + SENTENCE + "\n", encoding="utf-8")
    with open(tmp_path / "test.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text", "label"], [1, SENTENCE.upper(), "positive"]])
    (tmp_path / "blank.tsv").write_text("id\ttext\n1\t\n2\tw1 w2\n", encoding="utf-8")
    tables = [part for name in ("test.csv", "blank.tsv") for part in ("--evaluation", tmp_path / name)]
    options = ["--backbone", folder, *tables, "--steps", "100"]
    done = subprocess.run(
        [sys.executable, "-m", "deftx", "check", tmp_path / "ace.txt", *options], capture_output=True, text=True,
        timeout=PATIENCE, env={**os.environ, "COLUMNS": "100"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines() if "│" in line]
    counts = {cells[1]: cells[2:4] for cells in rows if len(cells) > 3}
    assert counts["repeated passages"] == ["1,599", "2, 3, 4, ..."]
    assert counts["equal to one of 3 evaluation sentences"] == ["1", "1601"]
    assert counts["with a short one (under 30 letters)"] == ["1,600", "1, 2, 3, ..."]
    assert counts["steps of 8: planned"] == ["100", ""]
    assert (
        "ace: 1,601 passages, 8.1 kB, 1.0 tokens a word, 23 blocks of 256; good for about 300 steps of 8; 1,600 with a "
        "short evaluation sentence" in done.stdout
    )
    assert (
        "warning: ace: 1 of 1,601 passages (0.062 %) are sentences of its evaluation files (line 1601)" in done.stdout
    )


def test_the_command_answers_a_mistake_with_code_2_and_no_traceback(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "tiny")
    (tmp_path / "ace.txt").write_bytes(b"w1\n\xff\n")
    for arguments, words in (
        ((tmp_path / "no.txt", "--backbone", folder), "no such file"),
        ((tmp_path / "ace.txt", "--backbone", folder), "line 2: not UTF-8"),
        ((tmp_path / "ace.txt", "--backbone", tmp_path), "no tokenizer"),
    ):
        done = CliRunner().invoke(app, ["check", *(str(argument) for argument in arguments)])
        assert done.exit_code == 2
        assert words in done.stderr.replace("\n", "")
        assert "Traceback" not in done.output


# --- the stage


def check_stage(root: Path, folder: Path) -> Stage:
    """The check of a text of ace: 60 random lines, an empty one, the first one again, and a sentence of its test."""
    nusax = benchmark("nusax")
    write_files(root)
    tables = {split: evaluation_source(nusax, "ace", split, str(root)) for split in ("valid", "test")}  # type: ignore[arg-type]
    sentence = read_examples(nusax, tables["test"], "ace", "test").texts[4]
    path = root / "corpora" / "ace.txt"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines, "", lines[0], sentence.upper()]))
    given = World(str(root), folder).text().settings
    settings = {name: getattr(given, name) for name in TextStageSettings.model_fields}
    return Stage("check", CheckSettings(**settings, training=TRAINING, benchmark="nusax", evaluation=tables))  # type: ignore[arg-type]


def test_the_stage_publishes_the_check_of_what_its_text_stage_cuts(tmp_path: Path) -> None:
    store, stage = Store(str(tmp_path / "store")), check_stage(tmp_path / "data", write_backbone(tmp_path / "tiny"))
    manifest = make(stage, store)
    found = TextReport.model_validate_json(store.fetch(stage.address, "check.json").read_bytes())
    assert set(manifest.files) == {"check.json"}
    assert manifest.details == {"summary": found.summary, "warnings": list(found.warnings)}
    assert (found.language, found.passages, found.repeated) == ("ace", 62, Lines(count=1, first=(62,)))
    assert (found.sentences, found.phrases) == (12 + 9, Lines(count=1, first=(63,)))
    text = make(checked_text(stage), store).metrics
    for name in ("train_blocks", "valid_blocks"):
        assert getattr(found, name) == text[name] == manifest.metrics[name]
    assert (manifest.metrics["lines"], manifest.metrics["shared_lines"], manifest.metrics["warnings"]) == (
        text["lines"], 1, len(found.warnings),
    )  # fmt: skip


def test_both_sides_of_a_pair_are_compared(tmp_path: Path) -> None:
    root, nli = tmp_path / "data", benchmark("americasnli")
    for path, lines in {
        "americasnli/dev/quy.tsv": ["id\tpremise\thypothesis\tlabel", f"1\t{SENTENCE}\t{THIRTY}\tneutral"],
        "corpora/quy.txt": [*(f"w{n % 45} w1 w2" for n in range(40)), THIRTY, f"w1 {SENTENCE}"],
    }.items():
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text("\n".join(lines))
    table = evaluation_source(nli, "quy", "valid", str(root))
    asked = CheckSettings(
        language="quy", source=file_source(f"{root}/corpora/quy.txt"), text=TextSettings(block=8), seed=0,
        backbone=resolve_folder(str(write_backbone(tmp_path / "tiny"))), training=TRAINING, benchmark="americasnli",
        evaluation={"valid": table},
    )  # fmt: skip
    store = Store(str(tmp_path / "store"))
    manifest = make(Stage("check", asked), store)
    found = TextReport.model_validate_json(store.fetch(manifest.address, "check.json").read_bytes())
    assert (found.sentences, found.equal, found.contained) == (2, Lines.of([41]), Lines.of([42]))
    assert manifest.metrics["shared_lines"] == 2


def test_the_labels_of_the_evaluation_sentences_change_nothing(tmp_path: Path) -> None:
    folder, contents = write_backbone(tmp_path / "tiny"), []
    for name in ("as they are", "exchanged"):
        root, store = tmp_path / name, Store(str(tmp_path / f"store of {name}"))
        stage = check_stage(root, folder)
        if name == "exchanged":
            path = root / "nusax" / "acehnese" / "test.csv"
            path.write_text(path.read_text().replace("positive", "neutral"))
            source = evaluation_source(benchmark("nusax"), "ace", "test", str(root))
            evaluation = {**stage.settings.evaluation, "test": source}  # type: ignore[attr-defined]
            stage = Stage("check", stage.settings.model_copy(update={"evaluation": evaluation}))
        make(stage, store)
        contents.append(store.fetch(stage.address, "check.json").read_bytes())
    assert contents[0] == contents[1]


# --- the plan and the schedule


def test_every_text_that_a_vector_is_learnt_from_is_checked_and_no_row_needs_it() -> None:
    space = make_space(source={"learn": {"rank": 4, "retention": 0.05}})
    planner = make_planner(space)
    checks = planner.checks()
    assert [stage.label for stage in checks] == ["ace · check", "ban · check", "id · check"]
    assert all(stage.settings.evaluation.keys() == {"valid", "test"} for stage in checks)  # type: ignore[attr-defined]
    rows = [planner.combination(0, space.cells()[0]), *planner.baselines(), *planner.controls(space.cells()[0])]
    needed = {stage.address: stage.kind for row in rows for stage in row.stages}
    assert {checked_text(s).address for s in checks} == {a for a, kind in needed.items() if kind == "text"}
    assert "check" not in needed.values()
    assert estimate(checks) == estimate([])
    assert len(make_planner(make_space()).checks()) == 2


def test_checks_run_once_and_before_all_else() -> None:
    world = Workers()
    _, schedule = make_schedule(make_space(), world, checks=True)
    simulate(schedule, world, workers=1, seed=0)
    assert schedule.finished()
    kinds = [schedule.stages[address].kind for address in world.runs]
    assert (kinds[:2], kinds.count("check")) == (["check", "check"], 2)
    assert len(world.runs) == len(set(world.runs))
    _, again = make_schedule(make_space(), world, checks=True)
    assert again.finished()
    assert again.ready() is None


def test_a_sweep_is_not_finished_before_its_checks_are() -> None:
    world = Workers()
    _, schedule = make_schedule(make_space(), world)
    simulate(schedule, world, 1, 0)
    _, again = make_schedule(make_space(), world, checks=True)
    assert not again.finished()
    assert [stage.label for stage in again.missing()] == ["ace · check", "ban · check"]
    simulate(again, world, 1, 0)
    assert again.finished()


def test_a_failed_check_is_on_record_and_fails_no_row() -> None:
    world = Workers()
    _, schedule = make_schedule(make_space(), world, checks=True)
    simulate(schedule, world, 2, 0, fails=lambda job: "no such file" if job.name == "ban · check" else None)
    assert schedule.finished()
    assert list(schedule.failures.values()) == ["no such file"]
    assert all(schedule.reason(row) is None for row in schedule.rows)
    assert None not in schedule.scores.values()


# --- real text


@needs_real_files
@pytest.mark.parametrize("language", ["ace", "ban", "bjn"])
def test_no_real_corpus_holds_a_sentence_of_nusax_and_a_planted_one_is_found(language: str) -> None:
    root, nusax = os.environ["DEFTX_DATA_ROOT"], benchmark("nusax")
    sources = [(evaluation_source(nusax, language, split, root), split) for split in ("valid", "test")]  # type: ignore[arg-type]
    sentences = [text for table, split in sources for text in read_examples(nusax, table, language, split).texts]  # type: ignore[arg-type]
    lines = list(every_line(file_source(f"{root}/corpora/{language}.txt")))
    found = check_text(language, lines, WORDS, TextSettings(), TRAINING, evaluation=sentences)
    assert (found.sentences, found.equal.count, found.contained.count, found.repeated.count) == (500, 0, 0, 0)
    planted = [*lines, sentences[3].upper()]
    again = check_text(language, planted, WORDS, TextSettings(), TRAINING, evaluation=sentences)
    assert again.equal == Lines(count=1, first=(len(planted),))
