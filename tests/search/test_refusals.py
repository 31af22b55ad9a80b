"""The machine says no: a storage that is full, read-only or cannot be written to. Nothing is lost, and it goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from support.islands import folder_of, run, write_data, write_space

from deftx.errors import DataError, HubError, refusal
from deftx.stages.objects import Objects
from deftx.stages.store import Store

ONE = {"rank_l": [2], "rank_t": ["90%"], "baselines": ["lt-sft"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_space(tmp_path_factory.mktemp("space") / "tiny.yaml", **ONE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path, space: Path) -> bytes:
    storage = tmp_path_factory.mktemp("undisturbed")
    assert run(space, data, storage).exit_code == 0
    return table(storage)


def table(storage: Path) -> bytes:
    return (storage / "sweeps" / "tiny" / "results.csv").read_bytes()


def test_what_counts_as_the_machines_refusal() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y")
    assert refusal(full) == "/x/y: No space left on device"
    wrapped = SafetensorError("I/O error: No space left on device (os error 28)")
    assert refusal(wrapped) == "No space left on device"
    try:
        try:
            raise full
        except OSError as error:
            raise DataError("could not write") from error
    except DataError as outer:
        assert refusal(outer) == "/x/y: No space left on device"
    assert refusal(FileNotFoundError(errno.ENOENT, "no such file", "/x")) is None
    assert refusal(ValueError("no")) is None
    try:
        try:
            raise PermissionError(errno.EACCES, "Permission denied", "/x")
        except PermissionError:
            raise DataError("/x: cannot be read: ask who owns it") from None
    except DataError as told:
        assert refusal(told) is None  # it has words of its own
    assert refusal(ConnectionResetError("reset by peer")) == "reset by peer"
    assert refusal(TimeoutError()) == "TimeoutError"
    try:
        raise HubError("no hub") from ConnectionError("refused")
    except HubError as error:
        assert refusal(error) is None


@pytest.mark.parametrize("place", ["/dev/null/x", "/proc/nope"])
def test_a_place_that_cannot_be_written_to_is_a_clear_error(data: Path, space: Path, place: str) -> None:
    result = run(space, data, Path(place))
    assert result.exit_code in (2, 4), result.output
    assert result.output.startswith("error: ") or "\nerror: " in result.output
    assert place.rpartition("/")[0] in result.output
    assert "Traceback" not in result.output


def failing(method: Callable[..., Any], after: int, number: int) -> Callable[..., Any]:
    """A method of `Objects` that fails from its call `after` on, as on a full or a read-only disk."""
    calls = iter(range(1_000_000))

    def fails(self: Objects, *arguments: Any) -> Any:
        if next(calls) >= after:
            raise OSError(number, os.strerror(number), self.root)
        return method(self, *arguments)

    return fails


@pytest.mark.parametrize(("number", "after"), [(errno.EROFS, 0), (errno.ENOSPC, 9)])
def test_a_disk_that_fills_up_ends_the_run_with_4_and_the_same_command_goes_on(
    data: Path,
    space: Path,
    undisturbed: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    number: int,
) -> None:
    """Records and manifests fail to be written; then there is room, and the table is that of an undisturbed run."""
    with monkeypatch.context() as patch:
        patch.setattr(Objects, "write", failing(Objects.write, after, number))
        patch.setattr(Objects, "create", failing(Objects.create, after, number))
        result = run(space, data, tmp_path)
    assert result.exit_code == 4, result.output
    assert os.strerror(number) in result.output
    assert "the same command goes on once that is mended" in result.output
    assert "Traceback" not in result.output
    finished = set(Store(str(tmp_path)).addresses())
    again = run(space, data, tmp_path)
    assert again.exit_code == 0, again.output
    assert table(tmp_path) == undisturbed
    assert not folder_of(tmp_path, "tiny").failures()
    assert finished <= set(Store(str(tmp_path)).addresses())


def test_a_stage_that_finds_no_room_is_tried_again_by_the_next_start(
    data: Path, space: Path, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage's own files do not fit; its failure is on record, and no flag is needed."""

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("deftx.method.texts.save_file", full)
        result = run(space, data, tmp_path)
    assert result.exit_code == 4, result.output
    assert "No space left on device" in result.output
    assert run(space, data, tmp_path).exit_code == 0
    assert table(tmp_path) == undisturbed
