"""Processes that share out work: an input that kills one costs nothing but itself."""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple, Protocol

from ..models.errors import FsthError


ROOT = Path(__file__).resolve().parents[2]
GRACE = 20  # s that a process has to tidy up


class Crashed(NamedTuple):
    """What became of a task that killed its process."""

    cause: str


class Worker(Protocol):
    """Does one task after the other, wherever that is."""

    def __call__(self, task): ...

    def stop(self) -> None: ...


class ProcessWorker:
    """
    Calls a function in a process of its own, which is started anew after a task killed it, and ends with this one.

    Not an executor: one whose process dies does not say on which task, and its processes outlive a killed parent.

    Args:
        make: Called in the process once, to make the function there: a pipeline is loaded once. To be pickled.

    Raises:
        FsthError: `make` raised it.
    """

    def __init__(self, make: Callable[[], Callable]):
        self._make, self._stopping = make, False
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")  # threads fork badly
        self._connection, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end, self._make), daemon=True)
        self._process.start()
        other_end.close()  # so that the connection ends with the process
        try:
            problem = self._connection.recv()
        except (EOFError, ConnectionError):
            problem = FsthError(f"A worker could not begin: its process {self._cause()}.")
        if problem is not None:
            raise problem

    def __call__(self, task):
        """What the function returns, or [`Crashed`]."""
        if not self._process.is_alive() and not self._stopping:
            self._start()
        try:
            self._connection.send(task)
            return self._connection.recv()
        except (EOFError, ConnectionError):
            return Crashed(f"The process that computed it {self._cause()}.")

    def stop(self) -> None:
        """End the process, also from another thread; what is half-written there is tidied up."""
        self._stopping = True
        self._process.terminate()
        killer = threading.Timer(GRACE, self._process.kill)
        killer.daemon = True
        killer.start()

    def _cause(self) -> str:
        self._process.join()
        code = self._process.exitcode
        return f"died with status {code}" if code >= 0 else f"died of {signal.Signals(-code).name}"


def _serve(connection, make: Callable[[], Callable]) -> None:
    """The process of a worker: answers tasks until whoever asked is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to see, who ends this process then
    signal.signal(signal.SIGTERM, _tidy_up)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError, SystemExit):
        try:
            function = make()
        except FsthError as error:
            connection.send(FsthError(str(error)))
            return
        connection.send(None)
        while True:
            connection.send(function(connection.recv()))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _tidy_up(*_) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once more would only disturb it
    sys.exit(1)


def _end_with_parent() -> None:
    parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


class RayWorker:
    """The same as an actor of a Ray cluster, begun anew where its machine is lost, and what it did last with it."""

    def __init__(self, make: Callable[[], Callable], num_cpus: int, num_gpus: float):
        import ray

        options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_restarts": -1, "max_task_retries": 2}
        self._actor = ray.remote(_Actor).options(**options).remote(make)

    def __call__(self, task):
        """What the function returns, or [`Crashed`]."""
        import ray

        try:
            return ray.get(self._actor.run.remote(task))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError as error:
            raise FsthError("A machine of the Ray cluster was lost, and no other took its place.") from error

    def stop(self) -> None:
        import ray

        ray.kill(self._actor)


class _Actor:
    def __init__(self, make: Callable[[], Callable]):
        self._make, self._worker = make, None

    def run(self, task):
        if self._worker is None:  # here, so that what it raises reaches the caller as it is
            self._worker = ProcessWorker(self._make)
        return self._worker(task)


def start_ray() -> tuple[list[int], float]:
    """Join the cluster that RAY_ADDRESS names, or make one of this machine; its machines' cores, and how many GPUs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
    try:
        import ray
    except ImportError as error:
        raise FsthError("Ray is not installed: python -m pip install 'fsth-hub[cluster]'.") from error
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # a checkout need not be installed
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
    ray.init(runtime_env=environment, log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return cores, ray.cluster_resources().get("GPU", 0)


def share_out(cores: list[int], num_workers: int | None, most: int) -> tuple[int, int]:
    """
    How many workers machines of so many cores take, and how many cores each of them: a worker that finds no place
    would wait for ever, and its rows with it.

    Args:
        num_workers: As many as that, if they find a place; `None` for as many as there are places.
        most: Cores of a worker, if there are as many.
    """
    for share in range(most, 0, -1):
        places = sum(count // share for count in cores)
        if places >= (num_workers or max(1, sum(cores) // most)):
            break
    return min(num_workers or places, max(1, places)), share


def run_parts(parts: Iterable[list], make_worker: Callable[[], Worker], num_workers: int) -> Iterator[tuple]:
    """
    Each task with what a worker made of it, in the order in which they are done; all tasks of a part go to the same
    worker, one after the other. What making a worker raises ends it all, and so does whoever stops to listen.
    """
    waiting, results, stopping = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
    for part in parts:
        waiting.put(part)
    workers: list[Worker] = []

    def work() -> None:  # a thread only waits for its worker
        try:
            worker = make_worker()
            workers.append(worker)
            if stopping.is_set():
                worker.stop()
                return
            with suppress(queue.Empty):
                while True:
                    for task in waiting.get_nowait():
                        result = worker(task)
                        if stopping.is_set():
                            return
                        results.put((task, result))
            results.put(None)
        except BaseException as error:
            results.put(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(num_workers)]
    try:
        for thread in threads:
            thread.start()
        running = num_workers
        while running:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                running -= 1
            else:
                yield result
    finally:
        stopping.set()
        for worker in list(workers):
            worker.stop()
        for thread in threads:
            thread.join(GRACE)
