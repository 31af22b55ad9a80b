"""A randomly initialised XLM-R of any shape with its own tokenizer: to try the machinery without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deftx.data.corpora import read_lines
from deftx.method.pretrain import train_tokenizer
from deftx.models.load import quiet
from deftx.sources.files import file_source


def write(
    folder: Path, corpora: list[Path], *, layers: int, hidden: int, heads: int, feed_forward: int, vocabulary: int,
    tokens: int = 8000, seed: int = 0,
) -> None:  # fmt: skip
    """Write config, weights and tokenizer; the tokenizer has `tokens` entries, the embedding `vocabulary` rows."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    texts = [read_lines(file_source(str(path)))[:3000] for path in corpora]
    tokenizer = train_tokenizer(texts, min(tokens, vocabulary))
    config = XLMRobertaConfig(
        vocab_size=max(vocabulary, len(tokenizer)), hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=feed_forward, max_position_embeddings=514, type_vocab_size=1,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    with quiet():
        XLMRobertaForMaskedLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def main(
    folder: Annotated[Path, typer.Argument(help="where to write it")],
    data_root: Annotated[Path, typer.Option(help="corpora/*.txt in it train the tokenizer")] = Path("data"),
    layers: int = 2,
    hidden: int = 64,
    vocabulary: int = 8000,
) -> None:
    """Write a random XLM-R into FOLDER."""
    corpora = sorted((data_root / "corpora").glob("*.txt"))
    if not corpora:
        raise typer.BadParameter(f"{data_root}/corpora holds no *.txt")
    heads, feed_forward = max(hidden // 64, 1), 4 * hidden
    write(folder, corpora, layers=layers, hidden=hidden, heads=heads, feed_forward=feed_forward, vocabulary=vocabulary)
    print(folder)


if __name__ == "__main__":
    typer.run(main)
