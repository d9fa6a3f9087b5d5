"""What is computed once and kept beside its owner, until the owner changes."""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn


class Cache:
    """
    The values made for a few owners, the last ones used. Threads that ask at once for the same value wait for one of
    them to make it. Copies and pickles of a cache are empty: what is in it can be made again.

    Args:
        size (`int`, *optional*, defaults to 1): How many values are kept.
    """

    def __init__(self, size: int = 1):
        self.size = size
        self._lock = threading.Lock()
        self._entries: list[tuple[weakref.ref, object, object]] = []  # owner, its state, the value

    def get(self, owner, state, make: Callable[[], object]):
        """The value that `make` returned for this very owner when it was in this state; made if there is none."""
        with self._lock:
            found = next((e for e in self._entries if e[0]() is owner and e[1] == state), None)
            # one value for each owner, and what belonged to owners that are gone goes with them
            self._entries = [e for e in self._entries if e[0]() is not None and e[0]() is not owner]
            if found is None:
                found = (weakref.ref(owner), state, make())
            self._entries = [*self._entries, found][-self.size :]
            return found[2]

    def __reduce__(self):
        return Cache, (self.size,)


def weights_state(*items) -> tuple:
    """
    What changes whenever tensors are replaced, moved, converted or written to in place; a write to `tensor.data`,
    which PyTorch does not count either, is not seen.

    Args:
        items: Tensors, modules, and lists, tuples and dictionaries of such; anything else does not count.
    """
    return tuple(
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.device, tensor.dtype)
        for tensor in _tensors(items)
    )


def owner_of(weights: tuple) -> nn.Module | torch.Tensor:
    """
    Whose a network that was made of weights is in a cache: theirs, and not that of the person who has them, for there
    may be several such, as where a photograph shows somebody who is known.

    Args:
        weights: A network alone, or one and what was learned on top of it by name.
    """
    last = weights[-1]
    return last if isinstance(last, nn.Module) else next(iter(last.values()))


def _tensors(item) -> Iterator[torch.Tensor]:
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, nn.Module):
        parts = [item]  # by hand, which is several times as quick as `parameters()`
        while parts:
            part = vars(parts.pop())
            tensors = [*part["_parameters"].values(), *part["_buffers"].values()]
            yield from (tensor for tensor in tensors if tensor is not None)
            parts += filter(None, part["_modules"].values())
    elif isinstance(item, Mapping):
        yield from _tensors(list(item.values()))
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from _tensors(part)
