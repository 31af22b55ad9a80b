"""Kinds A and B of what users of such tools reported: what is refused before work begins, and the forms that load."""

from __future__ import annotations

from pathlib import Path

import sentencepiece
from support.tiny import write_backbone

from deftx.models.load import load_tokenizer

TEXT = ["tum rumed goqes ducil", "bam rumed ha tum ne", "goqes ne ducil bam"] * 20


def sentencepiece_alone(folder: Path) -> Path:
    """A backbone whose tokenizer is a `sentencepiece.bpe.model` and nothing else."""
    write_backbone(folder)
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    (folder.parent / "text.txt").write_text("\n".join(TEXT), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder.parent / "text.txt"), model_prefix=str(folder / "sentencepiece.bpe"), vocab_size=40,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "sentencepiece.bpe.vocab").unlink()
    return folder


def test_a_sentencepiece_model_alone_is_a_tokenizer(tmp_path: Path) -> None:
    folder = sentencepiece_alone(tmp_path / "xlmr")
    tokenizer = load_tokenizer(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    assert len(tokenizer) == len(pieces) + 2
    # fairseq's numbers: <s>, <pad>, </s> and <unk> first, every other piece one further, <mask> last
    ids = [{0: 3}.get(piece, piece + 1) for piece in pieces.encode("ducil tum xyz")]
    assert tokenizer("ducil tum xyz")["input_ids"] == [0, *ids, 2]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id) == (1, 3, len(tokenizer) - 1)
