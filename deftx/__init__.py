"""DEFT-X: denoised sparse fine-tuning for zero-shot cross-lingual transfer (arXiv 2505.15090), one process, no Ray.

Start at `deftx.method.make.make` (learn a vector), `deftx.sft.vector.SparseFineTuning` (load one) and
`deftx.sft.compose.compose` (add vectors to a model). Nothing is imported here: names live where their module says.
"""

__version__ = "0.1.0"
