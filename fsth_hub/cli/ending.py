"""How `fsth` speaks and ends: one sentence, in whatever the console can show, and the exit code that goes with it."""

import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

from ..models.errors import FsthError, FsthWarning
from ..saving import reason


# Ctrl-C, a service manager, a terminal that is closed, Windows' console; not all are known everywhere.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


class Ended(KeyboardInterrupt):
    """A signal asked the process to end: what is unfinished is tidied up on the way out."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def set_up_process() -> None:
    """For a process of its own: tidy up where a signal ends it, and print whatever a name holds."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or in the background
            signal.signal(number, _end)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """Say the project's own warnings in a line each, every time, and leave the others as they are."""
    usual = warnings.showwarning

    def show(message, category, *others, **options) -> None:
        if issubclass(category, FsthWarning):
            _say(f"fsth: warning: {message}")
        else:
            usual(message, category, *others, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("always", FsthWarning)
        # Pillow's, of pictures for which there is a sentence
        warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")
        warnings.showwarning = show
        yield


def _end(number: int, frame) -> None:
    raise Ended(number)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Say warnings, and what ends a command, in one line; exit with 1, or 128 and the number of the signal."""
    try:
        with _warnings_as_sentences():
            yield
    except (SystemExit, typer.Exit):
        raise
    except BaseException as error:
        interrupt = _interrupt_of(error)
        if interrupt is not None:
            for number in SIGNALS:
                if signal.getsignal(number) is _end:  # all is tidied up: once more would only disturb Python's own end
                    signal.signal(number, signal.SIG_IGN)
            number = getattr(interrupt, "number", signal.SIGINT)
            by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
            _say(f"fsth: stopped{by}; nothing half-written is left.")
            raise SystemExit(128 + number) from error
        if isinstance(error, FsthError):
            _say(f"fsth: error: {error}")
            raise SystemExit(1) from error
        if isinstance(error, OSError) and error.errno != errno.EPIPE:  # `| head`, which typer knows
            where = f" ({error.filename})" if error.filename else ""
            _say(f"fsth: error: {reason(error)}{where}.")
            _forget_what_cannot_be_printed()
            raise SystemExit(1) from error
        raise


def _interrupt_of(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt, also where tidying up after it failed, such as a progress bar's on a terminal that is gone."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal may be closed
        typer.echo(" ".join(text.split()), err=True)


def _forget_what_cannot_be_printed() -> None:
    """Where the disk behind stdout is full Python would complain once more, and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
