"""A tokenizer is the one that was published, whatever class transformers makes of its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from support.encoders import CONFIGS
from support.tiny import make_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from deftx.models.load import load_tokenizer

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TEXT = ["bam rumed goqes ducil tum nan", "Tum bam goqes"] * 50


def unigram() -> Tokenizer:
    """As XLM-R has it: pieces, and spaces as parts of them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return tokenizer


@pytest.mark.parametrize(
    "named", [None, "BertTokenizer", "BertTokenizerFast", "XLMRobertaTokenizer", "RobertaTokenizer"]
)
def test_a_bert_with_the_tokenizer_of_xlm_r(tmp_path: Path, named: str | None) -> None:
    """Multilingual MiniLM: BERT's rules on its vocabulary would know no word."""
    published = unigram()  # training it anew numbers equal pieces otherwise
    expected = published.encode("bam rumed goqes").ids
    published.enable_truncation(4)
    published.enable_padding(length=12)
    published.save(str(tmp_path / "tokenizer.json"))
    CONFIGS["bert"](vocab_size=60).save_pretrained(tmp_path)
    if named:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("bam rumed goqes")["input_ids"] == expected
    assert tokenizer.unk_token_id not in expected
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.cls_token_id) == (1, 4, 0)
    assert len(tokenizer) == published.get_vocab_size()


@pytest.mark.parametrize("named", [None, {}, {"tokenizer_class": "BertTokenizer"}])
def test_a_cased_tokenizer_stays_cased(tmp_path: Path, named: dict[str, str] | None) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Tum", "tum", "nan", "ñan"]
    cased = Tokenizer(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    cased.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    cased.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cased.save(str(tmp_path / "tokenizer.json"))
    CONFIGS["bert"](vocab_size=len(tokens)).save_pretrained(tmp_path)
    if named is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("Tum ñan", add_special_tokens=False)["input_ids"]) == [
        "Tum",
        "ñan",
    ]


def test_one_that_agrees_is_as_transformers_builds_it(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    CONFIGS["xlm-roberta"]().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("w1 w2")["input_ids"] == make_tokenizer()("w1 w2")["input_ids"]
    assert tokenizer.mask_token == "<mask>"


def test_deberta_normalises_as_its_sentencepiece_model_says(tmp_path: Path) -> None:
    """mDeBERTa is published with `spm.model` alone, whose table folds ligatures and full width."""
    (tmp_path / "corpus.txt").write_text("\n".join([*TEXT, "finan abcdefghijklmnopqrstuvwxyz"] * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "spm"), vocab_size=60, hard_vocab_limit=False,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]",
        unk_piece="[UNK]",
    )  # fmt: skip
    CONFIGS["deberta-v2"](vocab_size=70).save_pretrained(tmp_path)
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    tokenizer = load_tokenizer(tmp_path)
    for text in ("ﬁnan tum", "ｂａｍ rumed", "tum\u200bnan", "bam  rumed"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == own.encode(text), text
