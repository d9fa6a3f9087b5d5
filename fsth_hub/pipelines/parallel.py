"""Two frames at once: networks of this size leave half of a processor idle when they have all of it to themselves."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from ..models.modeling_fsth import FsthPreTrainedModel, is_hooked


NUM_AT_ONCE = 2


def num_workers(network: FsthPreTrainedModel, engine: str) -> int:
    """How many frames to generate at once with this network; OpenVINO uses all of a processor for one."""
    alone = engine != "torch" or network.device.type != "cpu" or is_hooked(network)
    return 1 if alone else min(NUM_AT_ONCE, torch.get_num_threads())


@contextmanager
def one_share(workers: int) -> Iterator[None]:
    """
    Within it this thread has as many of PyTorch's threads as one of so many workers. For a frame by itself: the others
    gain a network of 128 pixels nothing, and it waits for them wherever they have to share a core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))
    try:
        yield
    finally:
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
    pool = ThreadPoolExecutor(workers, "fsth", torch.set_num_threads, (max(1, threads // workers),))
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
