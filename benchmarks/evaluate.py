"""Predicting 5 x 500 sentences as a grade does, in batches by length, against padding every batch to 128 tokens.

Four of the twelve layers: every layer does the same. With `--data-root` the lengths are those of NusaX's validation and
test sentences under a byte-pair encoding of 8,000 tokens learnt from them; without, they are drawn from a log-normal
distribution fitted to those (mean 32 tokens, 5 % above 70). XLM-R's own tokenizer splits these languages' words
further. A token costs the same whatever it is, so tokens are drawn at random.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.deltas import shape_of
from benchmarks.measure import Options, interleaved, median
from benchmarks.models import PAD, classifier
from benchmarks.reference import LONGEST, plain_predict
from benchmarks.results import BenchmarkRow, at_least, command
from deftx.train.objectives import Encoded, predict

LANGUAGES = ("ace", "ban", "bjn", "mad", "min")
SENTENCES = 500


def rows(options: Options) -> list[BenchmarkRow]:
    """Seconds for all five languages, and whether both ways predict the same."""
    shape = shape_of(options)
    model = classifier(replace(shape, layers=min(shape.layers, 4))).to(options.device).eval()
    count = 20 if options.small else SENTENCES
    languages = [random_sentences(lengths[:count], seed) for seed, lengths in enumerate(_lengths(options))]
    device = torch.device(options.device)
    found: dict[str, list[NDArray[np.int64]]] = {"ours": [], "reference": []}
    works = {
        "ours": lambda: found["ours"].append(np.concatenate([predict(model, one, PAD, device) for one in languages])),
        "reference": lambda: found["reference"].append(
            np.concatenate([plain_predict(model, one, device) for one in languages])
        ),
    }
    seconds = {name: median(times) for name, times in interleaved(works, 1, 0, options.device).items()}
    agree = float((found["ours"][0] == found["reference"][0]).mean())
    tokens = sum(len(ids) for one in languages for ids in one.ids) / (len(languages) * count)
    where = "NusaX" if options.data_root else "lengths drawn as NusaX's"
    work = f"evaluate {len(languages)} x {count} sentences"
    note = f"{where}, {tokens:.0f} tokens on average; {agree:.2%} predicted alike"
    return [at_least(BenchmarkRow(work, "seconds", seconds["ours"], seconds["reference"], note=note), 1.5)]


def random_sentences(lengths: list[int], seed: int) -> Encoded:
    """Sentences of these numbers of tokens."""
    generator = np.random.default_rng(seed)
    ids = tuple(generator.integers(5, 2000, length).tolist() for length in lengths)
    return Encoded(ids, np.zeros(len(ids), dtype=np.int64))


def _lengths(options: Options) -> list[list[int]]:
    if options.data_root is not None:
        return real_lengths(options.data_root)
    drawn = np.exp(np.random.default_rng(0).normal(3.33, 0.556, (len(LANGUAGES), SENTENCES)))
    longest = LONGEST if not options.small else 60
    return [np.clip(one, 5, longest).astype(int).tolist() for one in drawn]


def real_lengths(data_root: Path) -> list[list[int]]:
    """Tokens, 128 at most, of NusaX's validation and test sentences of each language."""
    from deftx.data.catalogue import benchmark
    from deftx.data.examples import evaluation_source, read_examples
    from deftx.method.pretrain import train_tokenizer

    known = benchmark("nusax")
    texts = [
        [
            text
            for split in ("valid", "test")
            for text in read_examples(
                known, evaluation_source(known, language, split, str(data_root)), language, split
            ).texts
        ]
        for language in LANGUAGES
    ]  # fmt: skip
    tokenizer = train_tokenizer(texts, 8000)
    return [[min(len(ids), LONGEST) for ids in tokenizer(one)["input_ids"]] for one in texts]


if __name__ == "__main__":
    command({"evaluate": rows}, __doc__)
