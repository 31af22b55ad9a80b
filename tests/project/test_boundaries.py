"""What a module may import, each seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.nusax_files import write_files
from support.patience import PATIENCE

import deftx
from orchestrator.space.load import shipped_spaces

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
        ("deftx, deftx.hardware", (*HEAVY, "numpy", "pydantic")),
        ("deftx.errors", (*HEAVY, "numpy", "pydantic")),
        ("deftx.cli.app, orchestrator.report.__main__", tuple(name for name in HEAVY if name != "orchestrator")),
        ("orchestrator.sweep", ("torch", "transformers", "ray", "mlflow", "pandas", "matplotlib", "rapidfuzz")),
        ("deftx.config, deftx.recipes, deftx.stages.build, deftx.sources.published", (*HEAVY, "numpy")),
        ("deftx.evaluate.metrics, deftx.data.examples", HEAVY),
        ("deftx.models.sizes", (*HEAVY, "numpy", "pydantic")),
        (
            "deftx.masks.denoise, deftx.masks.select, deftx.sft.vector, deftx.sft.compose, deftx.sft.composable",
            NOT_TORCH,
        ),
        ("deftx.notebook.learn, deftx.notebook.classify", TRAINS_BARE),
        ("deftx.method.make, deftx.data.leaks, deftx.stages.store, deftx.data.archipelago", TRAINS_BARE),
    ],
)
def test_importing(modules: str, forbidden: tuple[str, ...]) -> None:
    assert not imported_by(f"import {modules}") & set(forbidden)


def test_no_plan_of_a_shipped_space_imports_torch(tmp_path: Path) -> None:
    write_files(tmp_path / "data")
    on_files, storage = ["--data-root", str(tmp_path / "data")], ["--plan", "--storage", str(tmp_path / "results")]
    options = {
        "demo": [],
        "americasnli": ["--set", "targets=[aym,gn,quy]"],
        "americasnli-minilm": ["--set", "targets=[aym,gn]"],
    }
    plans = [[name, *options.get(name, on_files), *storage] for name in shipped_spaces()]
    found = imported_by(
        "import os; os.environ['https_proxy'] = 'http://127.0.0.1:9'\n"  # nothing is fetched
        "from deftx import hardware; hardware.multiplies_bf16 = lambda: True\n"  # else no plan for GPUs on some CPUs
        "from orchestrator.sweep import app\n"
        f"for plan in {plans}: app(plan, standalone_mode=False)"
    )
    assert not found & {"torch", "transformers", "datasets", "ray", "mlflow"}
    assert {"store", "orchestrator"} <= found, "words of the plans, and the packages imported"
    assert "unknown" not in found, "the size of each backbone is known"


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
