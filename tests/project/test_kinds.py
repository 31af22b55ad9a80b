"""The kinds of stages are complete in both tables, and no other file tells them apart."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import deftx
from deftx.errors import ConfigError
from deftx.method.context import Context, Made
from deftx.stages import kinds
from deftx.stages.facts import SparseFacts
from deftx.stages.kinds import KINDS, kind_of, register
from orchestrator import kinds as shown
from orchestrator.kinds import SHOWN, result, shown_as
from orchestrator.report.plots.page import RAMP

ROOT = Path(deftx.__file__).parents[1]
PLANNER = {"deftx/stages/build.py", "orchestrator/plan/inputs.py"}
MAY_TELL = {"deftx/stages/kinds.py", "orchestrator/kinds.py"} | PLANNER
"""The two tables, the builders of stages, and the planner where it pre-trains a backbone."""
CLASSES = {of.__name__ for kind in KINDS.values() for of in (kind.settings, kind.facts)}


def test_what_is_known_of_each_kind_is_known_of_how_it_is_shown() -> None:
    assert list(KINDS) == list(SHOWN) == ["backbone", "check", "text", "dense", "sparse", "grade"]
    assert len({shown_as(name).fill for name in KINDS}) == len(KINDS), "no two are drawn alike"
    assert max(shown_as(name).fill for name in KINDS) < len(RAMP)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_whole(name: str) -> None:
    kind, how = kind_of(name), shown_as(name)
    parameters = inspect.signature(kind.load()).parameters.values()
    assert [parameter.annotation for parameter in parameters] in ([Context], ["Context"])
    assert inspect.signature(kind.load()).return_annotation in (Made, "Made")
    assert set(how.names) <= set(kind.facts.model_fields), "a name in MLflow is that of a fact"
    assert not kind.makes_sft or issubclass(kind.facts, SparseFacts)
    assert {result(name, key, 1.0)[0] for key in kind.facts.model_fields} >= {words for words, _ in how.names.values()}


def test_a_kind_is_registered_once_and_a_misspelt_one_is_told_its_name() -> None:
    with pytest.raises(ValueError, match="there is a kind of stage 'dense' already"):
        register(KINDS["dense"])
    with pytest.raises(ValueError, match="how a dense stage is shown is known already"):
        shown.register("dense", SHOWN["dense"])
    for look in (kind_of, shown_as):
        with pytest.raises(ConfigError, match=r"unknown kind of stage 'dens'.*'dense'.*there are backbone, check"):
            look("dens")


def test_the_kinds_know_no_torch_and_name_what_they_run() -> None:
    assert all(kind.runs.startswith("deftx.method.") for kind in KINDS.values())
    assert "deftx.method" not in {name.rpartition(".")[0] for name in vars(kinds)}


# -- no other file tells kinds apart ----------------------------------------------------------------------------------


def test_no_other_file_tells_kinds_apart() -> None:
    paths = [path for room in ("deftx", "orchestrator") for path in (ROOT / room).rglob("*.py")]
    tells = {
        str(path.relative_to(ROOT)): [f"line {line}: {code}" for line, code in told_apart(path.read_text("utf-8"))]
        for path in paths
    }
    assert {name: places for name, places in tells.items() if places and name not in MAY_TELL} == {}


@pytest.mark.parametrize(
    "code",
    [
        'if stage.kind == "sparse": ...',
        'x = "grade" != entry.kind',
        'x = manifest.kind in ("dense", "sparse")',
        'KINDS = ["backbone", "text"]',
        'x = {"sparse": 1, "check": 2}[kind]',
        'x = {"sparse": 1}.get(manifest.kind)',
        'def f(kind: Literal["dense", "sparse"]): ...',
        'match stage.kind:\n    case "dense": ...',
        'Stage("text", settings)',
        "isinstance(stage.settings, SparseSettings)",
        "isinstance(x, (int, settings.DenseSettings))",
        "isinstance(x, TextStageSettings | DenseSettings)",
        "isinstance(facts, SparseFacts)",
        "x = type(facts) is GradeFacts",
    ],
)
def test_such_a_file_is_found(code: str) -> None:
    assert list(told_apart(code))


@pytest.mark.parametrize(
    "code",
    [
        'stage.input("dense")', 'x = parts["backbone"]["kind"] == "local"', 'x = row.kind == "combination"',
        'Layout(text="text", label="label")', "settings_of(stage, SparseSettings)", 'x = ("backbone", "task")',
    ],
)  # fmt: skip
def test_a_role_is_no_kind(code: str) -> None:
    assert not list(told_apart(code))


def told_apart(code: str) -> Iterator[tuple[int, str]]:
    """(line, code) of each place that compares with a kind's name, lists kinds' names, or looks at their classes."""
    for node in ast.walk(ast.parse(code)):
        if any(_tells(node)):
            yield getattr(node, "lineno", 0), ast.unparse(node)[:80]


def _tells(node: ast.AST) -> Iterator[bool]:
    match node:
        case ast.Compare():
            sides = [node.left, *node.comparators]
            yield any(_is_name(side) or _named(side) or _is_class(side) for side in sides)
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            yield sum(map(_is_name, elements)) > 1
        case ast.Dict(keys=keys):
            yield sum(_is_name(key) for key in keys if key) > 1
        case ast.Subscript(value=ast.Dict(keys=keys), slice=ast.Attribute(attr="kind")):
            yield any(_is_name(key) for key in keys if key)
        case ast.Call(func=ast.Attribute(value=ast.Dict(keys=keys)), args=[ast.Attribute(attr="kind"), *_]):
            yield any(_is_name(key) for key in keys if key)
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, of]):
            yield any(_is_class(part) for part in ast.walk(of))
        case ast.Call(func=ast.Name(id="Stage"), args=[first, *_]):
            yield _is_name(first)
        case ast.MatchValue(value=value):
            yield _is_name(value)


def _named(node: ast.AST) -> bool:
    """A collection with a kind's name in it."""
    return isinstance(node, ast.Tuple | ast.List | ast.Set) and any(map(_is_name, node.elts))


def _is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in KINDS


def _is_class(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in CLASSES
