"""DEFT-X: denoised sparse fine-tuning for zero-shot cross-lingual transfer (arXiv 2505.15090), one process, no Ray.

    ace = deftx.learn_language("ace.txt", backbone=...)      # a sparse vector, from plain text
    task = deftx.learn_task("nusax", backbone=...)           # another, from labelled text in the source language
    classify = deftx.compose(backbone, task, ace)            # a pipeline of transformers
    print(deftx.grade(classify, "ace.csv"))                  # macro F1 with its 95 % interval

Importing this imports nothing else: a name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deftx.config import Execution
    from deftx.data.catalogue import OwnBenchmark
    from deftx.errors import DeftxError
    from deftx.notebook.classify import compose, grade
    from deftx.notebook.learn import learn_language, learn_task
    from deftx.sft.vector import SparseFineTuning

__version__ = "0.1.0"

__all__ = [
    "DeftxError",
    "Execution",
    "OwnBenchmark",
    "SparseFineTuning",
    "compose",
    "grade",
    "learn_language",
    "learn_task",
]

_LIES_IN = {
    "DeftxError": "deftx.errors",
    "Execution": "deftx.config",
    "OwnBenchmark": "deftx.data.catalogue",
    "SparseFineTuning": "deftx.sft.vector",
    "compose": "deftx.notebook.classify",
    "grade": "deftx.notebook.classify",
    "learn_language": "deftx.notebook.learn",
    "learn_task": "deftx.notebook.learn",
}


def __getattr__(name: str) -> object:
    """A public name, loaded now (PEP 562)."""
    if name not in _LIES_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LIES_IN[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
