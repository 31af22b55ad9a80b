"""A tokenizer as it was published, where transformers builds another one from the same folder.

transformers 5 takes the vocabulary of a `tokenizer.json` and the rest from the class that the folder names or that the
model's type stands for. So BERT's rules may be applied to a vocabulary of XLM-R's, as multilingual MiniLM has it, and
every word becomes unknown. The file is believed instead. How a tokenizer is found in a folder is in `load`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SPELT = {
    "unk_token": ("<unk>", "[UNK]"), "cls_token": ("<s>", "[CLS]"), "sep_token": ("</s>", "[SEP]"),
    "pad_token": ("<pad>", "[PAD]"), "mask_token": ("<mask>", "[MASK]"), "bos_token": ("<s>",), "eos_token": ("</s>",),
}  # fmt: skip
"""How special tokens are spelt where the class's own are not in the vocabulary."""


def as_published(folder: Path, tokenizer: Any) -> Any:
    """The tokenizer of a folder's own files, with the special tokens of the one that transformers built.

    Args:
        folder: with a `tokenizer.json`, or a SentencePiece model whose normalisation transformers may leave out.
        tokenizer: as `AutoTokenizer` built it; returned as it is where the two agree.
    """
    if not tokenizer.is_fast:
        return tokenizer
    if (folder / "tokenizer.json").is_file():
        return _of_file(folder / "tokenizer.json", tokenizer)
    for path in sorted(folder.glob("*.model")):
        _normalise_as(path, tokenizer.backend_tokenizer)
    return tokenizer


def _of_file(path: Path, tokenizer: Any) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    published = Tokenizer.from_file(str(path))
    if _rules(published) == _rules(tokenizer.backend_tokenizer):
        return tokenizer
    published.no_truncation()
    published.no_padding()
    special: dict[str, str] = {}
    for name, spelt in _SPELT.items():
        candidates = [token for token in (str(getattr(tokenizer, name) or ""), *spelt) if token]
        known = [token for token in candidates if published.token_to_id(token) is not None]
        special |= {name: known[0]} if known else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=published, model_input_names=tokenizer.model_input_names,
        model_max_length=tokenizer.model_max_length, **special,
    )  # fmt: skip


def _rules(tokenizer: Any) -> tuple[str, Any, Any]:
    """How a tokenizer cuts texts, its vocabulary apart: the kind of its model, how it normalises, where it splits."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    return type(tokenizer.model).__name__, *(part and part.__getstate__() for part in parts)


def _normalise_as(path: Path, backend: Any) -> None:
    """Let a tokenizer normalise by the table in a SentencePiece model, where it has none."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import normalizers
    from transformers.convert_slow_tokenizer import import_protobuf

    if b"Precompiled" in (backend.normalizer.__getstate__() if backend.normalizer else b""):
        return
    content = SentencePieceProcessor(model_file=str(path)).serialized_model_proto()
    proto = import_protobuf().ModelProto.FromString(content)
    if table := proto.normalizer_spec.precompiled_charsmap:
        after = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([normalizers.Precompiled(table), *after])
