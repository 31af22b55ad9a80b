"""Batches made ahead of the step that takes them, by a thread of their own. What a batch is, is in `objectives`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

_DEPTH = 4
"""Batches that wait: the time to make one varies."""


class Ahead(Generic[T]):
    """What a function makes of each of some numbers, in order; the next few are made while one is used."""

    def __init__(self, make: Callable[[int], T], numbers: Iterable[int]) -> None:
        """Begin to make.

        Args:
            make: called in the thread; what it raises, `take` raises in its place.
            numbers: in the order of `take`.
        """
        self._made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(_DEPTH)
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(make, numbers), name="deftx-batches", daemon=True)
        self._thread.start()

    def take(self) -> T:
        """What was made of the next number.

        Raises:
            IndexError: past the last of them.
            BaseException: what `make` raised, however often it is asked again.
        """
        item, self._error = (None, self._error) if self._error else self._made.get()
        if self._error is not None:
            raise self._error
        assert item is not None
        return item

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        while self._thread.is_alive():
            try:  # it may wait for room
                self._made.get(timeout=0.01)
            except queue.Empty:
                continue
        self._thread.join()

    def _work(self, make: Callable[[int], T], numbers: Iterable[int]) -> None:
        try:
            for number in numbers:
                made = make(number)
                if self._closed.is_set():
                    return
                self._made.put((made, None))
                if self._closed.is_set():
                    return
            self._made.put((None, IndexError("there is no further batch")))
        except BaseException as error:  # the taker's to deal with
            self._made.put((None, error))
