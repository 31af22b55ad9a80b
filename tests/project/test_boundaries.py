"""What a module may import, each seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import PATIENCE

import deftx

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "rapidfuzz",
    "ray",
    "optuna",
    "mlflow",
    "pandas",
    "matplotlib",
    "orchestrator",
)
NOT_TORCH = tuple(name for name in HEAVY if name != "torch")
TRAINS_BARE = ("datasets", "rapidfuzz", "ray", "optuna", "mlflow", "orchestrator", "pandas", "matplotlib")
MODULES = sorted(
    ".".join(path.relative_to(Path(deftx.__file__).parent.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in Path(deftx.__file__).parent.rglob("*.py")
)


def imported_by(code: str) -> set[str]:
    """The top-level packages that are loaded after some code has run."""
    report = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=PATIENCE, check=True,
        cwd=Path(deftx.__file__).parent.parent,
    )  # fmt: skip
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("deftx", (*HEAVY, "numpy", "pydantic")),
        ("deftx.errors", (*HEAVY, "numpy", "pydantic")),
        ("deftx.config, deftx.stages.stage, deftx.sources.published", (*HEAVY, "numpy")),
        ("deftx.evaluate.metrics, deftx.data.examples", HEAVY),
        (
            "deftx.masks.denoise, deftx.masks.select, deftx.sft.vector, deftx.sft.compose, deftx.sft.composable",
            NOT_TORCH,
        ),
        ("deftx.method.make, deftx.data.leaks, deftx.stages.store, deftx.data.archipelago", TRAINS_BARE),
    ],
)
def test_importing(modules: str, forbidden: tuple[str, ...]) -> None:
    assert not imported_by(f"import {modules}") & set(forbidden)


def test_all_of_deftx_together_imports_nothing_of_the_search() -> None:
    found = imported_by("import " + ", ".join(MODULES))
    assert not found & set(TRAINS_BARE)
    assert {"torch", "deftx"} <= found


def test_nothing_of_deftx_names_a_package_of_the_search_not_even_lazily() -> None:
    for path in Path(deftx.__file__).parent.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].partition(".")[0] not in {"ray", "optuna", "mlflow", "orchestrator"}, path
