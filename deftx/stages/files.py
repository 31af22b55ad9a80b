"""The names of the files that stages publish: the one place that knows them."""

from __future__ import annotations

MODEL = "model"
"""The folder of a backbone."""

DELTA, HEAD, BLOCKS = "delta.safetensors", "head.safetensors", "blocks.safetensors"

SINGULAR_VALUES, SINGULAR_VECTORS = "spectra.safetensors", "vectors.safetensors"

SCORES, SEALED, DROPPED, CHECK = "scores.json", "sealed_test.json", "dropped_rows.json", "check.json"

SFT, TENSORS, METADATA = "sft", "sft.safetensors", "sft.json"
"""The folder of an SFT and what is in it."""
