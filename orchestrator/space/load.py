"""Loads a space from a name or a file and `--set`; every problem is reported at once, with its path.

The schema itself is in `schema`. A preset is overridden by the file, the file by `--set`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from deftx.config import PresetName, TaskKind
from deftx.data.catalogue import BENCHMARKS
from deftx.errors import ConfigError, explain, hint
from deftx.recipes import merge, preset
from orchestrator.space.schema import Space

_NAME_OR_MAPPING = ("benchmark", "backbone")

_LONGEST = 1_000_000
"""Characters of a space."""
_MOST_PARTS = 100_000
"""Settings and values of a space, each counted wherever an anchor puts it."""

RENAMED = {"lag": "search_parallelism"}
"""Names of settings in earlier releases, and their names now."""


def shipped_spaces() -> list[str]:
    """The names of the spaces that come with the package."""
    folder = files("search_spaces")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_space(name: str, overrides: Iterable[str] = (), **options: object) -> tuple[str, Space]:
    """A validated space, by shipped name or by path.

    Args:
        name: a name in search_spaces/, or the path of a YAML file.
        overrides: `key=value`, key dotted, value YAML: `language.training.max_steps=5`.
        options: top-level keys that the command has options for; None leaves the space's own value.

    Returns:
        (the space's name, the space).

    Raises:
        ConfigError: listing every problem with its path and, for a misspelt name, the nearest valid one.
    """
    title, text = _read(name)
    raw = _parsed(name, text)
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: a space is a mapping of settings, this is {type(raw).__name__}")
    overrides = list(overrides)
    problems = [problem for text in overrides if (problem := _override(raw, text))]
    problems += _set_twice(overrides)
    raw |= {key: value for key, value in options.items() if value is not None}
    merged = _with_preset(raw)
    try:
        space = Space.model_validate(merged)
    except ValidationError as error:
        problems += [_explain(problem, merged) for problem in error.errors() if not _other_branch(problem, merged)]
    if problems:
        raise ConfigError(f"{name}: {len(problems)} problem(s)\n" + "\n".join(f"  {problem}" for problem in problems))
    return title, space


def _parsed(name: str, text: str) -> object:
    """What some YAML holds.

    Raises:
        ConfigError: naming where it comes from, for what is no YAML, says a thing twice, or is too large or deep.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"{name}: {len(text):,} characters; a space has {_LONGEST:,} at most")
    try:
        loaded = yaml.load(text, _EachOnce)
    except RecursionError:
        raise ConfigError(f"{name}: nested too deep for a space") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        words = " ".join(str(error).split()).partition("; use sys.")[0]  # Python's advice to let it through
        raise ConfigError(f"{name}: not YAML: {words}") from None
    if not _countable(loaded):
        raise ConfigError(
            f"{name}: more than {_MOST_PARTS:,} settings and values, anchors written out; a space has fewer"
        )
    return loaded


def _countable(loaded: object) -> bool:
    """Whether what was loaded has a bounded number of parts: anchors write a thousand million of them in a line."""
    left, count = [loaded], 0
    while left and count <= _MOST_PARTS:
        part = left.pop()
        count += 1
        if isinstance(part, dict | list):
            left += [*part.values()] if isinstance(part, dict) else part
    return count <= _MOST_PARTS


class _EachOnce(yaml.SafeLoader):
    """YAML as `safe_load` reads it, in which no key may stand twice and every text can be written."""

    def construct_scalar(self, node: Any) -> Any:
        """The text of a node.

        Raises:
            ConstructorError: for one that no file can hold, with its line.
        """
        value = super().construct_scalar(node)
        if any("\ud800" <= character <= "\udfff" for character in value):
            line = node.start_mark.line + 1
            raise yaml.constructor.ConstructorError(None, None, f"{value!a} on line {line} has half a character in it")
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node.

        Raises:
            ConstructorError: for a key that stands a second time, with both places.
        """
        places: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            line = key.start_mark.line + 1
            if key.value in places:
                both = f"on line {places[key.value]} and again on line {line}"
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands {both}; keep one")
            places[key.value] = line
        return super().construct_mapping(node, deep)


def _set_twice(overrides: Sequence[str]) -> list[str]:
    """What is wrong with overrides of which two set the same key."""
    keys = [text.partition("=")[0].strip() for text in overrides if "=" in text]
    return [
        f"--set {key}: given {keys.count(key)} times; give it once"
        for key in dict.fromkeys(keys)
        if keys.count(key) > 1
    ]


def _read(name: str) -> tuple[str, str]:
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or "/" in name:
        try:
            return path.stem, path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{name}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name}: not UTF-8 at byte {error.start}") from None
    names = shipped_spaces()
    if name not in names:
        raise ConfigError(f"unknown space {name!r}{hint(name, names)}; there are {', '.join(names)}, or give a path")
    return name, (files("search_spaces") / f"{name}.yaml").read_text(encoding="utf-8")


def _override(raw: dict[str, Any], text: str) -> str | None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not key.isprintable():
        return f"--set {text}: write key=value, such as language.training.max_steps=5"
    *parents, last = key.strip().split(".")
    group = raw
    for parent in parents:
        inner = group.get(parent, {})
        if not isinstance(inner, dict):
            return f"--set {text}: {parent} is not a group of settings"
        # a copy: YAML's anchors have one group in several places
        group[parent] = group = dict(inner)
    try:
        group[last] = _parsed(f"--set {key.strip()}", value)
    except ConfigError as error:
        return str(error)
    return None


def _with_preset(raw: dict[str, Any]) -> dict[str, Any]:
    name = raw.get("preset", "paper")
    if name not in get_args(PresetName):
        return raw
    defaults = preset(name, _task_kind(raw.get("benchmark")))
    merged = {**raw, **{part: merge(defaults[part], raw.get(part) or {}) for part in ("language", "task")}}
    return merged


def _task_kind(benchmark: Any) -> TaskKind:
    """The kind of task of a benchmark as written, right or wrong."""
    if isinstance(benchmark, Mapping):
        return "nli" if benchmark.get("kind") == "nli" else "sentiment"
    builtin = BENCHMARKS.get(benchmark) if isinstance(benchmark, str) else None
    return builtin.kind if builtin else "sentiment"


def _other_branch(problem: Any, raw: Mapping[str, Any]) -> bool:
    """Whether a problem is about the form (a name, or a mapping) that the user did not write."""
    key, *form = problem["loc"] or [None]
    if key not in _NAME_OR_MAPPING or not form:
        return False
    is_name = bool(form[0] == "str")
    return is_name == isinstance(raw.get(key), Mapping)


def _explain(problem: Any, raw: Mapping[str, Any]) -> str:
    location = list(problem["loc"])
    if location[:1] and location[0] in _NAME_OR_MAPPING:
        # pydantic names the form that it tried
        del location[1:2]
    path = ".".join(map(str, location)) or "space"
    if problem["type"] == "extra_forbidden" and path in RENAMED:
        return f"{path} is called {RENAMED[path]} now"
    if problem["type"] == "extra_forbidden":
        fields = _fields(location[:-1])
        return f"{path}: unknown key{hint(str(location[-1]), fields)}"
    if problem["type"] == "missing":
        return f"{path}: missing"
    return f"{path}: {explain(problem)}"


def _fields(location: Iterable[object]) -> list[str]:
    """The field names of the settings at a location of the schema."""
    schema: Any = Space
    for part in location:
        if isinstance(schema, type) and issubclass(schema, BaseModel) and str(part) in schema.model_fields:
            schema = schema.model_fields[str(part)].annotation
        args = [arg for arg in get_args(schema) if isinstance(arg, type) and issubclass(arg, BaseModel)]
        schema = args[0] if args else schema
    return list(schema.model_fields) if isinstance(schema, type) and issubclass(schema, BaseModel) else []
