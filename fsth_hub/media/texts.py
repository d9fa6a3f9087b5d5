"""Files of text that people and other programs write."""

import os
from pathlib import Path

from ..models.errors import FsthError, FsthNotFoundError
from ..saving import reason


def read_text(path: str | os.PathLike, max_bytes: int) -> str:
    """A file of text, such as JSON, of a limited size; `FsthError` for what is none."""
    path = Path(path)
    try:
        if path.stat().st_size > max_bytes:
            raise FsthError(f"{path.name} is larger than {max_bytes // 2**20} MB, which is too much for such a file.")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FsthNotFoundError(f"There is no file {path}: check the path.") from None
    except UnicodeDecodeError:
        raise FsthError(f"{path.name} is no text: it is damaged, or another kind of file.") from None
    except OSError as error:
        raise FsthError(f"{path.name} cannot be read: {reason(error)}.") from error


def check_suffix(path: str | os.PathLike, suffix: str) -> None:
    """Refuse (`FsthError`) what is no path, or one whose name does not end so."""
    if not isinstance(path, str | os.PathLike):
        raise FsthError(f"A file is written to a path, not {type(path)}.")
    if not Path(path).name.lower().endswith(suffix):
        raise FsthError(f"{Path(path).name} cannot be written: its name must end in {suffix}.")
