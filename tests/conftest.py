"""Fixtures that more than one test module uses."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small only wait for a second thread

from pathlib import Path

import pytest


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
