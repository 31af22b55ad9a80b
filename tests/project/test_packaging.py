"""The wheel in any directory, the cluster file through Ray's own checks, and that no file names what it must not."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def test_the_wheel_works_in_any_directory(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("deftx_sweeps-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "search_spaces/nusax.yaml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        f"import sys; sys.path = [{str(tmp_path / 'site')!r}] + [p for p in sys.path if p != {str(ROOT)!r}]\n"
        "import orchestrator.sweep as s, deftx; assert 'site' in s.__file__ and 'site' in deftx.__file__\n"
        "sys.argv = ['sweep', 'demo', '--plan']; s.app()"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], cwd=elsewhere, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "4 dense and 8 sparse trainings for 4 combinations" in result.stdout.replace("\n", " ")


def test_every_direct_dependency_is_pinned_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {_normal(re.split(r"[\[<>=; ]", text)[0]) for text in wanted}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_normal(line.split("==")[0]) for line in lines if re.fullmatch(r"[^#\s=]+==\S+", line)}
    assert names <= pinned, names - pinned
    assert "torch==2.13.0" in lines


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_cluster_file_passes_rays_own_checks() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    config = util.prepare_config(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8")))
    util.validate_config(config)
    worker = config["available_node_types"]["a100_worker"]
    assert worker["min_workers"] == 0
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert any("[cluster]" in command for command in config["setup_commands"])


def test_mlflow_is_opened_on_loopback_alone() -> None:
    source = (ROOT / "orchestrator" / "tracking" / "ui.py").read_text(encoding="utf-8")
    assert re.findall(r'"--host", "([^"]*)"', source) == ["127.0.0.1"]
