"""Fixtures that more than one test module uses."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ["NO_GCE_CHECK"] = "true"  # nor does Google's library look for the metadata server of a cloud
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small only wait for a second thread
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where a test asks for two threads, none spins on a busy core
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 leaves a worker next to nothing beside another test

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

for name in ("DEFTX_ADDRESS", "DEFTX_STORAGE", "MLFLOW_TRACKING_URI"):  # of a machine that is set up for sweeps
    os.environ.pop(name, None)

# how long an example takes is the machine's affair
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("faults", settings.get_profile("any machine"), max_examples=10_000)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny XLM-R with LM head and tokenizer."""
    from support.tiny import write_backbone

    return write_backbone(tmp_path_factory.mktemp("tiny") / "xlmr")


@pytest.fixture(scope="session")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny XLM-R without an LM head, as multilingual E5 is."""
    from support.tiny import write_backbone

    return write_backbone(tmp_path_factory.mktemp("tiny") / "me5", lm_head=False, seed=1)
