"""The presets `paper`, `paper-l1` and `lt-sft`, and recipes: a preset with a user's settings over it. No torch here.

A space writes its settings in groups (`language.training.max_steps`), a notebook by their names alone (`max_steps`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from deftx.config import Denoise, LanguageRecipe, PresetName, RetentionOf, Settings, TaskKind, TaskRecipe
from deftx.errors import ConfigError, explain, hint

Recipe = TypeVar("Recipe", LanguageRecipe, TaskRecipe)


def preset(name: PresetName, task: TaskKind) -> dict[str, Any]:
    """The settings of a preset as `{"language": ..., "task": ...}`, to be overridden by a space.

    `paper` is DEFT-X as published, its L1 term as coded upstream (no gradient); `paper-l1` makes that term real;
    `lt-sft` has no L1 term, and the smaller task learning rate of Ansell et al. (2022).

    Raises:
        ConfigError: for an unknown preset.
    """
    l1 = {"paper": (0.1, False), "paper-l1": (0.1, True), "lt-sft": (0.0, True)}
    if name not in [*l1]:  # not by hash: a notebook may pass anything
        raise ConfigError(f"unknown preset {name!r}: choose one of {', '.join(l1)}")
    strength, gradient = l1[name]
    language = {
        "training": {
            "epochs": 100, "max_steps": 100_000, "min_steps": 30_000, "batch_size": 8, "learning_rate": 5e-5,
            "validate_every": 1000, "l1": strength, "l1_gradient": gradient,
        },
    }  # fmt: skip
    schedule = {
        "sentiment": {"epochs": 10, "batch_size": 16, "validate_every": 250},
        "nli": {"epochs": 5, "batch_size": 32, "validate_every": 625},
    }[task]
    rate = 2e-5 if name == "lt-sft" else 5e-5
    return {"language": language, "task": {"training": {**schedule, "max_steps": 1_000_000, "learning_rate": rate}}}


def merge(below: Mapping[str, Any], above: Any) -> Any:
    """Settings in groups with others laid over them, group by group."""
    if not isinstance(above, Mapping):
        return above
    merged = dict(below)
    for key, value in above.items():
        merged[key] = merge(below[key], value) if isinstance(below.get(key), Mapping) else value
    # a smaller max_steps is meant: the preset's floor gives way to it
    if "max_steps" in above and "min_steps" not in above and isinstance(merged.get("max_steps"), int):
        merged["min_steps"] = min(merged.get("min_steps", 0), merged["max_steps"])
    return merged


def recipe_of(
    kind: type[Recipe], below: Mapping[str, Any], settings: Mapping[str, Any], others: Iterable[str] = ()
) -> Recipe:
    """A recipe of a preset and of settings by their names alone.

    Args:
        kind: `LanguageRecipe` or `TaskRecipe`.
        below: the preset's part for it.
        settings: fields of the recipe, and of its groups such as `Training`; no name is in two of them.
        others: what the caller takes besides, for hints about a misspelt name.

    Raises:
        ConfigError: with a line for each unknown name (and the nearest one) and for each value out of range.
    """
    groups: dict[str, str] = dict(_settings_of(kind))
    names = [*groups, *others]
    problems = [f"{name}: unknown setting{hint(name, names)}" for name in settings if name not in groups]
    above: dict[str, Any] = {}
    for name in settings.keys() & groups.keys():
        group = groups[name]
        (above.setdefault(group, {}) if group else above)[name] = settings[name]
    try:
        recipe = kind.model_validate(merge(below, above))
    except ValidationError as error:
        problems += explain_all(error)
    if problems:
        raise ConfigError("\n".join(problems))
    return recipe


def denoising(rank: object, retention: float, retention_of: RetentionOf = "numel") -> Denoise | None:
    """The denoising of a rank and a retention; None, which is LT-SFT, without a rank.

    Raises:
        ConfigError: with a line for each of them that is out of range.
    """
    given = {"rank": rank, "retention": retention, "retention_of": retention_of}
    try:
        return None if rank is None else Denoise.model_validate(given)
    except ValidationError as error:
        raise ConfigError("\n".join(explain_all(error))) from None


def explain_all(error: ValidationError) -> list[str]:
    """A line for each problem: the field's own name, and what is wrong with it."""
    return [": ".join([*_field(problem["loc"]), explain(problem)]) for problem in error.errors()]


def _field(place: Iterable[int | str]) -> list[str]:
    """The name of the field that a problem is in, without the number of an entry within it."""
    return [part for part in place if isinstance(part, str)][-1:]


def _settings_of(kind: type[Settings]) -> Iterator[tuple[str, str]]:
    """(name, group) of every setting of a recipe; the group is empty for the recipe's own."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from ((inner, name) for inner in field.annotation.model_fields)
        else:
            yield name, ""
