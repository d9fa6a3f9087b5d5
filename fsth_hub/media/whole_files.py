"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..models.errors import FsthError


@contextmanager
def whole_file(path: str | os.PathLike, suffix: str) -> Iterator[Path]:
    """A place beside the target to write to; what was written there takes the target's place in the end.

    Args:
        path: What to write.
        suffix: What its name has to end in.

    Raises:
        FsthError: It cannot be written; nothing is left behind then.
    """
    if not isinstance(path, str | os.PathLike):
        raise FsthError(f"A file is written to a path, not {type(path)}.")
    path = Path(path)
    if not path.name.lower().endswith(suffix):
        raise FsthError(f"{path.name} cannot be written: its name must end in {suffix}.")
    if path.is_dir():
        raise FsthError(f"{path.name} cannot be written: it is a folder; give the name of a file.")
    try:
        with tempfile.TemporaryDirectory(prefix=".fsth-", dir=path.absolute().parent) as folder:
            unfinished = Path(folder, path.name)
            yield unfinished
            if unfinished.exists():
                unfinished.replace(path)
    except OSError as error:
        raise FsthError(f"{path.name} cannot be written into {path.absolute().parent}: {error.strerror}.") from error


def check_writable(path: str | os.PathLike, suffix: str) -> None:
    """Refuse (`FsthError`) what `whole_file` could not write, before there is anything to write."""
    with whole_file(path, suffix):
        pass


def read_text(path: str | os.PathLike, max_bytes: int) -> str:
    """A file of text, such as JSON, of a limited size; `FsthError` for what is none."""
    path = Path(path)
    try:
        if path.stat().st_size > max_bytes:
            raise FsthError(f"{path.name} is larger than {max_bytes // 2**20} MB, which is too much for such a file.")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FsthError(f"There is no file {path}: check the path.") from None
    except UnicodeDecodeError:
        raise FsthError(f"{path.name} is no text: it is damaged, or another kind of file.") from None
    except OSError as error:
        raise FsthError(f"{path.name} cannot be read: {error.strerror}.") from error
