"""How a sweep is told to end: Ctrl-C, a notice of the machine that it goes away, a terminal that is closed.

All three end alike: no further job is handed out, trainings that run keep a checkpoint after their step and are left,
records, report and tracker are closed, and the exit code says which it was: 128 + the signal's number. A second one
ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from deftx.train.leave import ask
from orchestrator.run.driver import Driver

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SOON_SECONDS = 0.01


@contextmanager
def interruptible(driver: Driver) -> Iterator[None]:
    """A context in which such a signal raises KeyboardInterrupt and is also noted in the driver.

    Noted, since Python swallows what is raised in a destructor. Entered again within, it takes over from whoever set a
    handler meanwhile, as Ray does, whose own ends the process with a dump of its stack.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if driver.interrupted:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if frame is not None and frame.f_globals.get("__name__") == "logging":
            # it takes its lock and then enters `try`: raised between, the lock is kept, and the tracker waits for ever
            threading.Timer(_SOON_SECONDS, os.kill, (os.getpid(), number)).start()
            return
        driver.interrupted = number
        if not ask():  # where a training goes on here, it ends after its step
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with ExitStack() as stack:
        for number in _ENDING:
            if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGINT:  # nohup ignores SIGHUP
                stack.callback(signal.signal, number, signal.getsignal(number) or signal.SIG_DFL)
                signal.signal(number, interrupt)
        yield


def exit_code(number: int) -> int:
    """The code that a process ends with after a signal, as a shell has it: 130 for Ctrl-C."""
    return 128 + number
