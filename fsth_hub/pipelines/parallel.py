"""Several frames at once: networks of this size leave half of a processor idle when they have all of it to themselves,
and most of a GPU."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

import torch

from ..models.modeling_fsth import FsthPreTrainedModel, is_hooked


NUM_AT_ONCE = 2
ACCELERATOR_BATCH = 8  # frames a call, of which a single one would leave a GPU idle; not measured on one

_shared = threading.local()  # what a worker's thread knows of the others


def pick_batch_size(batch_size: int | None, device: torch.device, engine: str) -> int:
    """How many frames to give the networks in one call: so many as are asked for, by default one on a processor, where
    each then comes as soon as it is done. OpenVINO converts them for each number anew, and gets one."""
    if engine != "torch":
        return 1
    return batch_size or (1 if device.type == "cpu" else ACCELERATOR_BATCH)


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    """So many items at a time, read when they are asked for; fewer in the end."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def num_workers(network: FsthPreTrainedModel) -> int:
    """How many frames to generate at once with this network."""
    alone = network.device.type != "cpu" or is_hooked(network)
    return 1 if alone else min(NUM_AT_ONCE, total_threads())


def total_threads() -> int:
    """How many threads PyTorch has, those of all workers together."""
    return getattr(_shared, "threads", None) or torch.get_num_threads()


def take_share(threads: int, workers: int) -> None:
    """Have this thread compute with as many of PyTorch's as one of so many workers has."""
    _shared.threads = threads
    torch.get_num_threads()  # or a thread that has not computed yet would go back to the number of all when it does
    torch.set_num_threads(max(1, threads // workers))


@contextmanager
def one_share(workers: int) -> Iterator[None]:
    """
    Within it this thread has as many of PyTorch's threads as one of so many workers. For a frame by itself: the others
    gain a network of 128 pixels nothing, and it waits for them wherever they have to share a core.
    """
    threads = torch.get_num_threads()
    take_share(threads, workers)
    try:
        yield
    finally:
        _shared.threads = None
        torch.set_num_threads(threads)


def generate_ahead(generate: Callable, items: Iterable, workers: int) -> Iterator:
    """
    `map`, by so many threads that share PyTorch's among them: in order, no further ahead than there are threads, and
    what one raises reaches the caller in its turn. Whoever stops early waits for what is being generated, and no more.
    """
    if workers == 1:
        yield from map(generate, items)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "fsth", take_share, (threads, workers))
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(generate, item))
            torch.set_num_threads(threads)  # a thread's number becomes that of all that start later
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
