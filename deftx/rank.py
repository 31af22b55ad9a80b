"""How a rank is written: `100`, a uniform rank, or `90%`, the smallest rank that explains 90 % of the variance.

No other module parses a rank. torch is imported only where a rank meets singular values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from deftx.errors import shortened

if TYPE_CHECKING:
    from torch import Tensor


MOST_VALUES = 1000
"""Values of a searched setting at most; XLM-R base's matrices have 768 ranks."""


@dataclass(frozen=True, order=True)
class Rank:
    """A rank as a setting, made by `parse`. Ordered by number, uniform ranks before shares of variance.

    Attributes:
        is_share: whether it is a share of variance.
        number: the uniform rank, or the share in percent.
    """

    is_share: bool
    number: Decimal

    @classmethod
    def parse(cls, value: object) -> Rank:
        """The rank that a setting spells.

        Args:
            value: an int, text of either form, or a rank. A bare fraction is refused: 0.9 could mean either.

        Raises:
            ValueError: with the spelling that would be right.
        """
        if isinstance(value, Rank):
            return value
        plain = isinstance(value, int | float | str | Decimal) and not isinstance(value, bool)
        text = str(value).strip().replace(" ", "") if plain else ""
        if re.fullmatch(r"[0-9]+", text):
            if int(text) < 1:
                raise ValueError("a rank is at least 1 (full rank is written 100%)")
            return cls(False, Decimal(int(text)))
        if (share := percentage(text)) is not None:
            if not 0 < float(share) <= 100:
                raise ValueError(f"a share of variance lies above 0 % and up to 100 %, not {text}")
            return cls(True, share)
        if re.fullmatch(r"[0-9]*\.[0-9]+(?:[eE][-+]?[0-9]+)?", text):
            bare = float(text)
            hint = f"{bare * 100:g}% for a share of variance" if 0 < bare <= 1 else f"{round(bare)} for a uniform rank"
            raise ValueError(f"{text} is ambiguous as a rank: write {hint}")
        raise ValueError(
            f"a rank is a whole number such as 100 or a share of variance such as 90%, not {shortened(value)}"
        )

    @classmethod
    def in_range(cls, limits: Mapping[str, object]) -> list[Rank]:
        """The ranks of `{from: 25, to: 400, step: 25}` or `{from: 50%, to: 99%, step: 7%}`, smallest first.

        Raises:
            ValueError: for other keys, mixed forms, a range that does not go up, or a limit that is no rank.
        """
        if set(limits) != {"from", "to", "step"}:
            raise ValueError(
                "a range of ranks is written {from: 25, to: 400, step: 25} or {from: 50%, to: 99%, step: 7%}"
            )
        texts = [str(limits[key]).replace(" ", "") for key in ("from", "to", "step")]
        percent = [text.endswith("%") for text in texts]
        if any(percent) != all(percent):
            raise ValueError("a range of ranks has `from`, `to` and `step` all whole numbers or all with %")
        try:
            first, last, step = (int(text.removesuffix("%")) for text in texts)
        except ValueError:
            raise ValueError("a range of ranks has whole numbers") from None
        if step < 1 or last < first:
            raise ValueError("a range of ranks goes up: `from` <= `to`, `step` >= 1")
        if (number := (last - first) // step + 1) > MOST_VALUES:
            raise ValueError(f"a range of {number:,} ranks; {MOST_VALUES:,} at most: give it a larger step")
        return [cls.parse(f"{number}{'%' * percent[0]}") for number in range(first, last + 1, step)]

    def __str__(self) -> str:
        return f"{self.number:f}{'%' * self.is_share}"

    @property
    def uniform(self) -> int | None:
        """The uniform rank; None for a share of variance."""
        return None if self.is_share else int(self.number)

    @property
    def share(self) -> float | None:
        """The share of variance between 0 and 1; None for a uniform rank."""
        return float(self.number) / 100 if self.is_share else None

    def of(self, singular_values: Tensor) -> int:
        """The rank of one m x n matrix, from 1 to s = min(m, n).

        A uniform rank is clamped to s. A share p is the smallest r with

            sigma_1^2 + ... + sigma_r^2 >= p * (sigma_1^2 + ... + sigma_s^2),

        and `100%` is s.

        Args:
            singular_values: [s] float64, descending.
        """
        import torch

        full, share = singular_values.numel(), self.share
        if share is None:
            return min(int(self.number), full)
        if share >= 1:
            return full
        energy = singular_values.square().cumsum(0)
        return min(int(torch.searchsorted(energy, share * energy[-1])) + 1, full)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        # written as its text in every mode: addresses and files hold ranks as they are spelled
        return core_schema.no_info_plain_validator_function(
            cls.parse,
            json_schema_input_schema=core_schema.str_schema(),
            serialization=core_schema.to_string_ser_schema(when_used="always"),
        )


def percentage(text: str) -> Decimal | None:
    """The number before a `%`, in one form for each value (`90.50%` is 90.5); None for any other text."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", text)
    return Decimal(match.group(1)).normalize() if match else None
