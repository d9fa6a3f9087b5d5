"""What workers do in tests; next to nothing is imported here, so that their processes start fast."""

import os
import signal
import time
from pathlib import Path

from fsth_hub.models.errors import FsthError


def make_double():
    return double


def double(number: int) -> tuple[int, int]:
    """Twice as much, and the process; 13 kills it."""
    if number == 13:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 2 * number, os.getpid()


def make_meeting():
    return meet


def meet(place: tuple[str, str]) -> int:
    """Says in a folder that it is there, and waits for the other to come; the process."""
    folder, name = place
    Path(folder, name).touch()
    deadline = time.monotonic() + 60
    while len(os.listdir(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return os.getpid() if len(os.listdir(folder)) == 2 else 0


def make_endless():
    return work_endlessly


def work_endlessly(mark: str) -> None:
    """Works until it is ended, and says then that it has tidied up."""
    try:
        Path(mark).touch()
        while True:
            time.sleep(0.01)
    finally:
        Path(mark).unlink()


def make_nothing():
    raise FsthError("There is no such model.")


def die_at_once():
    os._exit(3)
