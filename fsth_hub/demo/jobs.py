"""Heavy work, one job at a time: all of it is done by a single thread, and each job can be stopped."""

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from html import escape
from queue import SimpleQueue
from typing import Any, TypeVar


Result = TypeVar("Result")

STOP_SECONDS = 10  # how long to wait for a job that was stopped; each frame it looks whether it was


class JobStopped(Exception):
    """The visitor cancelled the job or left."""


class Job:
    """What a running piece of work knows of its visitor: whom to report to, and whether anybody still waits."""

    future: Future

    def __init__(self):
        self.stopped = threading.Event()
        self.reports: SimpleQueue = SimpleQueue()

    def report(self, value: Any) -> None:
        """Show the visitor something; raises `JobStopped` where nobody waits any longer."""
        if self.stopped.is_set():
            raise JobStopped
        self.reports.put(value)


class Worker:
    """The one thread on which networks run (they and the detectors serve one thread at a time)."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fsth-worker")
        self._jobs: dict[Job, str | None] = {}  # and the session that each belongs to
        self._listing = threading.Lock()

    def submit(self, work: Callable[..., Result], *args) -> "Future[Result]":
        """Have something short done."""
        return self._thread.submit(work, *args)

    def stream(self, session: str | None, work: Callable[[Job], Result]) -> Generator[Any, None, Result]:
        """Have a long piece of work done: gives what it reports, and returns what it returns.

        Closing the generator stops the work, as `stop` does, and waits until it has been given up.

        Args:
            session: Whose work it is, for `stop`.
            work: Called on the worker's thread; it must call `Job.report` now and then.

        Raises:
            JobStopped: The job was stopped; or whatever `work` raises.
        """
        job, end = Job(), object()
        with self._listing:
            job.future = self._thread.submit(copy_context().run, work, job)  # the visitor's request goes along
            self._jobs[job] = session
        job.future.add_done_callback(lambda _: job.reports.put(end))
        try:
            yield from iter(job.reports.get, end)
            return job.future.result()
        except CancelledError:  # before its turn came
            raise JobStopped from None
        finally:
            job.stopped.set()
            if not job.future.cancel():
                job.future.exception()
            with self._listing:
                del self._jobs[job]

    def stop(self, session: str | None) -> None:
        """Stop all that a visitor has running, and wait until it has ended; the others' work goes on.

        The page offers Animate again when this returns, and Gradio's page ignores it, without a word, while the event
        that was cancelled still counts as running there.
        """
        with self._listing:
            jobs = [job for job, owner in self._jobs.items() if owner == session]
        for job in jobs:
            job.stopped.set()
        wait([job.future for job in jobs if not job.future.cancel()], STOP_SECONDS)


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
        # the first step is slow and says little about the others
        seconds = (time.monotonic() - self.started) / done * (self.total - done)
        left = "" if done < 3 or done >= self.total else f", about {_duration(seconds)} left"
        return progress_bar(
            f"{self.task}: {self.unit} {min(done, self.total)} of {self.total}{left}", done / self.total
        )


def progress_bar(text: str, fraction: float | None = None) -> str:
    """A progress bar with its text as HTML; without a fraction, one that only moves."""
    value = "" if fraction is None else f' value="{min(fraction, 1):.3f}"'
    # not read aloud at every frame: the text is polite, the bar's label is constant
    return f'<progress aria-label="Progress"{value}></progress><p role="status">{escape(text)}</p>'


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"
