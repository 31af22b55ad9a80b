"""The stage `backbone`: a small XLM-R and its BPE tokenizer, pre-trained here on plain text of several languages.

For the demo, for tests and for laptop-sized sweeps. The loop and the masked-language objective are the ordinary ones;
here all weights train, LayerNorms and the tied output embedding too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from deftx.config import Execution, TextSettings
from deftx.data.blocks import Blocks, token_blocks
from deftx.models.load import quiet
from deftx.stages.settings import BackboneSettings
from deftx.train.loop import Checkpoints, Report, TrainResult, train
from deftx.train.objectives import MaskedLanguageModelling, Masking
from deftx.train.trainable import Trainable

_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_WORD_START = "▁"


def pretrain(
    folder: Path,
    settings: BackboneSettings,
    texts: Mapping[str, Sequence[str]],
    tokenizer_texts: Mapping[str, Sequence[str]],
    *,
    seed: int,
    execution: Execution,
    checkpoints: Checkpoints | None = None,
    report: Report | None = None,
) -> TrainResult:
    """The result of training a masked language model, written with its own tokenizer into a folder.

    Args:
        texts: passages by language, to pre-train on.
        tokenizer_texts: passages by language that the tokenizer alone sees.

    Raises:
        DataError: when there is too little text for one block.
    """
    tokenizer = train_tokenizer([*texts.values(), *tokenizer_texts.values()], settings.vocabulary)
    objective = _objective(tokenizer, settings, texts, seed)
    model = new_model(len(tokenizer), settings, seed)
    result = train(
        model, objective, settings.training, seed=seed, trainable=Trainable(dict(model.named_parameters())),
        execution=execution, checkpoints=checkpoints, report=report,
    )  # fmt: skip
    with quiet():
        model.cpu().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return result


def train_tokenizer(texts: Sequence[Sequence[str]], vocabulary: int) -> Any:
    """A byte-pair encoding over metaspaced words, with XLM-R's special tokens and templates."""
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_WORD_START)
    bpe.decoder = decoders.Metaspace(replacement=_WORD_START)
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=_SPECIAL, show_progress=False)
    bpe.train_from_iterator((line for lines in texts for line in lines), trainer)
    ids = [("<s>", bpe.token_to_id("<s>")), ("</s>", bpe.token_to_id("</s>"))]
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>",
        unk_token="<unk>", pad_token="<pad>", mask_token="<mask>",
    )  # fmt: skip


def new_model(vocabulary: int, settings: BackboneSettings, seed: int) -> Any:
    """A randomly initialised XLM-R with an LM head tied to its embeddings."""
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    config = XLMRobertaConfig(
        **{**settings.config, "vocab_size": vocabulary}, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        initializer_range=settings.init, hidden_dropout_prob=settings.training.dropout or 0.0,
        attention_probs_dropout_prob=settings.training.dropout or 0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    return XLMRobertaForMaskedLM(config)


def _objective(
    tokenizer: Any, settings: BackboneSettings, texts: Mapping[str, Sequence[str]], seed: int
) -> MaskedLanguageModelling:
    text = TextSettings(block=settings.block, pack=settings.pack)
    parts = [token_blocks(lines, tokenizer, text, seed) for lines in texts.values()]
    blocks = Blocks(np.concatenate([p.train for p in parts]), np.concatenate([p.valid for p in parts]))
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    starts = np.array([token.startswith(_WORD_START) for token in tokens])
    special = frozenset(tokenizer.all_special_ids)
    masking = Masking(settings.mask_share, tokenizer.mask_token_id, len(tokenizer), special, starts)
    return MaskedLanguageModelling(blocks, masking, tokenizer.pad_token_id, seed)
