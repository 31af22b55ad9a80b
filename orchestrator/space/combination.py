"""A combination of ranks and retentions, as one value and as parameters by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from deftx.config import Denoise, RetentionOf


@dataclass(frozen=True)
class Combination:
    """How the language vectors and the task vector of a classifier are denoised."""

    language: Denoise
    task: Denoise

    @classmethod
    def read(cls, parameters: Mapping[str, Any], retention_of: RetentionOf = "numel") -> Combination:
        """The combination of parameters as `record` writes them, or with one `retention` for both kinds of vector.

        Raises:
            KeyError: for a rank that is missing.
            ValueError: for a value that is no rank or no share.
        """
        both = parameters.get("retention")
        retention_l, retention_t = parameters.get("retention_l", both), parameters.get("retention_t", both)
        return cls(
            _denoise(parameters["rank_l"], retention_l, retention_of),
            _denoise(parameters["rank_t"], retention_t, retention_of),
        )

    def record(self) -> dict[str, str | float]:
        """The parameters by name, as they stand in a sweep's state, in its tables and in MLflow."""
        return {
            "rank_l": str(self.language.rank), "rank_t": str(self.task.rank),
            "retention_l": self.language.retention, "retention_t": self.task.retention,
        }  # fmt: skip


@cache  # a grid of thousands of combinations has some hundred settings, and is made at every start
def _denoise(rank: str, retention: float, retention_of: RetentionOf) -> Denoise:
    """The denoising of a rank and a retention; the same object for equal ones."""
    return Denoise(rank=rank, retention=retention, retention_of=retention_of)
