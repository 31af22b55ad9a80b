"""What the faults have in common: three seeds, and the sweep of thirteen stages that each of them has to end as."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.faults import Counted, Sweep
from support.islands import write_data, write_space

SMALL = {"rank_l": [2], "rank_t": ["90%"], "baselines": [], "source": None}
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.faults) for seed in (1, 2)))
"""One seed of each fault asked for with `seed` is part of `make test`, unless the test itself is marked."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that has a seed is run with each."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", SEEDS)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The finished sweep, which nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    space, data = write_space(folder / "tiny.yaml", **SMALL), write_data(folder / "data")
    sweep = Sweep(space, data, folder / "storage", ("--serial",))
    assert sweep.run(Counted(folder / "operations")) == 0, sweep.log.read_text()
    assert len(sweep.kept) == 13
    sweep.check(sweep)
    return sweep


@pytest.fixture(scope="session")
def operations(undisturbed: Sweep) -> int:
    """How many changes of files an undisturbed run takes."""
    return int((undisturbed.storage.parent / "operations").read_text())


@pytest.fixture
def sweep(undisturbed: Sweep, tmp_path: Path) -> Sweep:
    """The same command on an empty storage."""
    return Sweep(undisturbed.space, undisturbed.data, tmp_path / "storage", ("--serial",))


@pytest.fixture
def bucket(undisturbed: Sweep, tmp_path: Path) -> Sweep:
    """The same command on an empty bucket."""
    return Sweep(undisturbed.space, undisturbed.data, tmp_path / "storage", ("--serial",), url="bucket://storage")
