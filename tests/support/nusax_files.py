"""NusaX, SmSA and corpora as files in their original layouts, with made-up words."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from deftx.data.catalogue import benchmark

LABELS = ("negative", "neutral", "positive")


def write_files(root: Path) -> Path:
    """NusaX, SmSA and corpora in their original layouts, with made-up words; one test sentence leaks into SmSA."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abdeikmnrstu", k=draw.randint(3, 8))) for _ in range(400)]

    def sentence() -> str:
        return " ".join(draw.choices(words, k=draw.randint(6, 14)))

    known = benchmark("nusax")
    for language in (*known.targets, "id"):
        folder = root / "nusax" / known.languages[language]
        folder.mkdir(parents=True)
        for split, rows in (("train", 5), ("valid", 12), ("test", 18)):
            with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                table = [[n, f" {sentence()},\n{sentence()} ", LABELS[n % 3]] for n in range(rows)]
                csv.writer(file).writerows([["id", "text", "label"], *table])
                leak = table[0][1]
    (root / "corpora").mkdir()
    for language in (*known.targets, "id", "en"):
        (root / "corpora" / f"{language}.txt").write_text("\n".join(sentence() for _ in range(900)), encoding="utf-8")
    (root / "smsa").mkdir()
    for split, rows in (("train", 40), ("valid", 10), ("test", 10)):
        lines = [f"{sentence()}\t{LABELS[n % 3]}" for n in range(rows)]
        lines += ["\t".join([" ".join(str(leak).split()), "positive"])] if split == "train" else []
        (root / "smsa" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root
