"""Heavy work, one job at a time: all of it is done by a single thread, and each job can be stopped."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from html import escape
from queue import SimpleQueue
from typing import Any, TypeVar

from ..models.errors import FsthError


Result = TypeVar("Result")

STOP_SECONDS = 10  # how long to wait for a job that was stopped; each frame it looks whether it was
MAX_WAITING = 16  # jobs in line
LINE_SECONDS = 2  # between two looks at how long those before take
NUMBERS = ("None", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")


class JobStopped(Exception):
    """The visitor cancelled the job or left."""


class Job:
    """What a piece of work knows of its visitor: whom to report to, and whether anybody still waits.

    Args:
        session: Whose it is.
        expected: How long it will take, s; None where nobody knows.
    """

    future: Future | None = None  # once its turn has come

    def __init__(self, session: str | None = None, expected: float | None = None):
        self.session, self._left, self._told = session, expected, time.monotonic()
        self.stopped = threading.Event()
        self.reports: SimpleQueue = SimpleQueue()

    def report(self, value: Any) -> None:
        """Show the visitor something; raises `JobStopped` where nobody waits any longer."""
        if self.stopped.is_set():
            raise JobStopped
        self.reports.put(value)

    def expect(self, seconds: float | None) -> None:
        """Tell those who wait that it will take so many seconds from now on."""
        self._left, self._told = seconds, time.monotonic()

    @property
    def left(self) -> float | None:
        """Seconds until it is done, if its turn is now; None where nobody knows, or it takes longer than it should."""
        if self._left is None or self.future is None:
            return self._left
        left = self._left - (time.monotonic() - self._told)
        return left if left >= 0 else None


class Worker:
    """The one thread on which networks run (they and the detectors serve one thread at a time).

    Long jobs wait in a line of their own, so that something short waits for no more than the one that runs.
    """

    def __init__(self):
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fsth-worker")
        self._line: list[Job] = []  # whose turn it is comes first
        self._moved = threading.Condition()

    def submit(self, work: Callable[..., Result], *args) -> "Future[Result]":
        """Have something short done."""
        return self._thread.submit(work, *args)

    def stream(
        self,
        session: str | None,
        work: Callable[[Job], Result],
        expected: float | None = None,
        waiting: Callable[[str], Any] | None = None,
    ) -> Generator[Any, None, Result]:
        """Have a long piece of work done: gives what it reports, and returns what it returns.

        Closing the generator stops the work, as `stop` does, and waits until it has been given up.

        Args:
            session: Whose work it is, for `stop`.
            work: Called on the worker's thread; it must call `Job.report` now and then.
            expected: How long it will take, s, as far as that is known.
            waiting: What to give before its turn comes, made of a bar that says how long that will take, as HTML.

        Raises:
            FsthError: Too many wait already.
            JobStopped: The job was stopped; or whatever `work` raises.
        """
        job, end = Job(session, expected), object()
        with self._moved:
            if len(self._line) > MAX_WAITING:
                raise FsthError(f"{MAX_WAITING} requests wait in line already: try again in some minutes.")
            self._line.append(job)
        try:
            yield from self._wait(job, waiting)
            with self._moved:  # or `stop` would miss it
                if job.stopped.is_set():
                    raise JobStopped
                job.expect(expected)
                job.future = self._thread.submit(copy_context().run, work, job)  # the visitor's request goes along
            job.future.add_done_callback(lambda _: job.reports.put(end))
            yield from iter(job.reports.get, end)
            return job.future.result()
        except CancelledError:  # while something short was being done
            raise JobStopped from None
        finally:
            job.stopped.set()
            if job.future and not job.future.cancel():
                job.future.exception()
            with self._moved:
                self._line.remove(job)
                self._moved.notify_all()

    def _wait(self, job: Job, waiting: Callable[[str], Any] | None) -> Iterator[Any]:
        """Until it is the job's turn, or it is stopped; gives what the visitor is to see of the line."""
        shown, before = None, []

        def has_moved() -> bool:
            return job.stopped.is_set() or self._line[: self._line.index(job)] != before

        while True:
            with self._moved:
                if shown is not None:
                    self._moved.wait_for(has_moved, LINE_SECONDS)
                before = self._line[: self._line.index(job)]
                if not before or job.stopped.is_set():
                    return
            words = line_words([other.left for other in before])
            if waiting is not None and words != shown:
                yield waiting(progress_bar(words))
            shown = words

    def stop(self, session: str | None) -> None:
        """Stop all that a visitor has running, and wait until it has ended; the others' work goes on.

        The page offers Animate again when this returns, and Gradio's page ignores it, without a word, while the event
        that was cancelled still counts as running there.
        """
        with self._moved:
            jobs = [job for job in self._line if job.session == session]
            for job in jobs:
                job.stopped.set()
            self._moved.notify_all()
        begun = [job.future for job in jobs if job.future]
        wait([future for future in begun if not future.cancel()], STOP_SECONDS)


def line_words(left: list[float | None]) -> str:
    """How many come first and how long they will take, where all of that is known.

    Args:
        left: Of each of them, s.
    """
    count = NUMBERS[len(left)] if len(left) < len(NUMBERS) else len(left)
    return f"{count} before you" + ("" if None in left else f": about {_duration(sum(left))}")


class Countdown:
    """Progress with the time left.

    Args:
        task: What is being done, as in "Drawing".
        total: Number of steps; None where nobody knows.
        unit: What a step is called.
    """

    def __init__(self, task: str, total: int | None, unit: str = "frame"):
        self.task, self.total, self.unit, self.started = task, total, unit, time.monotonic()

    def __call__(self, done: int) -> str:
        """The bar after so many steps, as HTML."""
        if not self.total:
            return progress_bar(f"{self.task}: {self.unit} {done}")
        seconds = self.left(done)
        left = "" if seconds is None or done >= self.total else f", about {_duration(seconds)} left"
        return progress_bar(
            f"{self.task}: {self.unit} {min(done, self.total)} of {self.total}{left}", done / self.total
        )

    def left(self, done: int) -> float | None:
        """Seconds to go after so many steps; None where nobody knows."""
        if not self.total or done < 3:  # the first step is slow and says little about the others
            return None
        return (time.monotonic() - self.started) / done * max(0, self.total - done)


def progress_bar(text: str, fraction: float | None = None) -> str:
    """A progress bar with its text as HTML; without a fraction, one that only moves."""
    value = "" if fraction is None else f' value="{min(fraction, 1):.3f}"'
    # not read aloud at every frame: the text is polite, the bar's label is constant
    return f'<progress aria-label="Progress"{value}></progress><p role="status">{escape(text)}</p>'


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"
