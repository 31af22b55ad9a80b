"""The folder of Ray's session: short enough for its sockets, and nobody else's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from orchestrator.run import folders
from orchestrator.run.folders import session_folder


def test_it_lies_in_tmpdir_is_private_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_SOCKET_PATH", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with session_folder() as folder:
        private = Path(folder).parent
        assert private.parent == tmp_path
        assert private.stat().st_mode & 0o077 == 0
        Path(folder).mkdir(mode=0o777)
        (Path(folder) / "log").write_text("AWS_SECRET_ACCESS_KEY")
    assert not private.exists()


def test_where_tmpdir_is_too_long_or_cannot_be_written_to_it_lies_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    for place in (deep, tmp_path / "none"):
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        with session_folder() as folder:
            assert not folder.startswith(str(tmp_path))
            assert len(folder) + len("/session_2026-11-26_20-10-10_123456_4194304/sockets/plasma_store.1") <= 107
            assert Path(folder).parent.stat().st_mode & 0o077 == 0
        assert not Path(folder).parent.exists()


def test_where_no_folder_can_be_made_the_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_SHORT", (str(tmp_path / "neither"),))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(OSError, match="none"), session_folder():
        pass
