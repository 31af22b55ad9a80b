"""DEFT-X: denoised sparse fine-tuning for zero-shot cross-lingual transfer (arXiv 2505.15090), one process, no Ray.

The names below load on first use, so that `import deftx` takes milliseconds and needs no torch. Functions named like
their module (compose, denoise, select) are imported from it: `from deftx.compose import compose`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "SparseFineTuning": "deftx.sft",
    "load_classifier": "deftx.backbones",
    "load_masked_lm": "deftx.backbones",
    "load_tokenizer": "deftx.backbones",
    "make": "deftx.algorithm",
}
__all__ = [*_HOME]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'deftx' has no attribute {name!r}")
