"""Every failure reaches the visitor as a sentence with what to do next."""

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from ..models.errors import FsthError, FsthMemoryError


@contextmanager
def told_to_visitor() -> Iterator[None]:
    """Turn what goes wrong inside into a message on the page (and for programs, the client's `AppError`)."""
    try:
        yield
    except _memory_errors() as error:
        raise _message("The machine's memory is full: try again in a minute, or with fewer portraits.") from error
    except FsthError as error:
        raise _message(str(error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _unexpected() from error
        raise _message("The machine's disk is full: try again later, or tell whoever runs this page.") from error
    except (gr.Error, GeneratorExit):
        raise
    except Exception as error:
        raise _unexpected() from error


def _memory_errors() -> tuple[type[Exception], ...]:
    """PyTorch's too, where it is loaded: the page does not wait for it."""
    torch = getattr(sys.modules.get("torch"), "OutOfMemoryError", None)  # None also while it is being loaded
    return (FsthMemoryError, MemoryError, *[torch] * (torch is not None))


def _unexpected() -> gr.Error:
    traceback.print_exc()  # for whoever runs the page; the visitor cannot do anything with it
    return _message("Something broke that is not your fault: try again, or with other files.")


def _message(text: str) -> gr.Error:
    return gr.Error(text, title="That did not work", duration=None, print_exception=False)
