"""Files and folders that appear whole or not at all, whatever ends the process that writes them."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from .models.errors import FsthError


try:
    import fcntl
except ImportError:  # Windows, which keeps a file that is open from being removed: that is lock enough
    fcntl = None

PREFIX, LOCK = ".fsth-", "lock"
ATTEMPTS = 100
IS_WINDOWS = os.name == "nt"
# There these are devices, whatever ending they have; and what follows on a colon is a hidden part of another file.
DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
NOT_IN_NAMES = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]$')
NAME = re.compile(re.escape(PREFIX) + "[a-z0-9_]{8}")  # as `tempfile` makes them


@contextmanager
def workplace(parent: str | os.PathLike | None = None) -> Iterator[Path]:
    """
    An empty folder (but for a file `lock`) that goes away with all it holds. Renaming out of it into `parent`, by
    default the system's folder for temporary files, is atomic.

    A process that is killed outright leaves it behind: the next one that works in `parent` removes it. Whose process
    lives holds its lock, and keeps it.

    Raises:
        OSError: Nothing can be written there.
    """
    parent = Path(tempfile.gettempdir() if parent is None else parent)
    _sweep(parent)
    folder, lock = _open_workplace(parent)
    try:
        yield folder
    finally:
        try:
            lock.close()
            _remove(folder)
        except BaseException:  # interrupted a second time, while tidying up
            _remove(folder)
            raise


@contextmanager
def whole_file(path: str | os.PathLike, kind: type[FsthError] = FsthError) -> Iterator[Path]:
    """
    A place to write a file to, which takes `path`'s once it is complete; if anything fails, all stays as it was.

    The place has the file's name. Of a link it is the target that is written. `OSError` becomes a `kind` of one
    sentence.
    """
    try:
        target = written_target(path, kind)
        with workplace(target.parent) as folder:
            unfinished = Path(folder, Path(path).name)
            yield unfinished
            if target.exists():
                shutil.copymode(target, unfinished)
            unfinished.replace(target)
    except OSError as error:
        if isinstance(error, FsthError):
            raise
        raise kind(f"{Path(path).name} cannot be written: {reason(error)}.") from error


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write a value as JSON, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def written_target(path: str | os.PathLike, kind: type[FsthError] = FsthError) -> Path:
    """The file that writing to `path` writes, links followed; a sentence for what is no file and no place for one."""
    path = Path(path)
    if IS_WINDOWS and (DEVICES.fullmatch(path.name) or NOT_IN_NAMES.search(path.name)):
        raise kind(f"{path.name} cannot be written: it is no name for a file on Windows; give another one.")
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise kind(f"{path.name} cannot be written: it is a link that leads back to itself.")
    if target.is_dir():
        raise kind(f"{path.name} cannot be written: it is a folder; give the name of a file.")
    if target.exists() and not target.is_file():
        raise kind(f"{path.name} cannot be written: it is a device or a pipe; give the name of a file.")
    if not target.parent.is_dir():
        raise kind(f"{path.name} cannot be written: there is no folder {target.parent}; make it first.")
    return target


def check_file(path: str | os.PathLike, kind: type[FsthError] = FsthError) -> None:
    """Refuse what `whole_file` could not write, before there is anything to write."""
    folder = Path(path).absolute().parent
    try:
        folder = written_target(path, kind).parent
        with workplace(folder):
            pass
    except OSError as error:
        if isinstance(error, FsthError):
            raise
        raise kind(f"{Path(path).name} cannot be written into {folder}: {reason(error)}.") from error


def put_folder(new: Path, folder: Path) -> None:
    """Put a folder out of a `workplace` in the place of another, which goes away with the workplace."""
    for number in range(ATTEMPTS):
        aside = new.with_name(f"replaced-{number}")
        with suppress(FileNotFoundError):  # there is none yet, or another process has just moved it
            folder.rename(aside)
        try:
            new.rename(folder)
            return
        except OSError:
            if number == ATTEMPTS - 1:  # before that, another process may have been quicker: the last one wins
                raise
        finally:
            if new.exists() and aside.exists() and not folder.exists():  # interrupted in between
                aside.rename(folder)


def reason(error: Exception) -> str:
    """Why the disk refused, without the name of a file that nobody knows; or else what an error says, in one line."""
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"os error (\d+)", str(error))):  # of a library written in Rust
        number = int(found[1])
    if number is not None:
        return os.strerror(number)
    text = "".join(letter if letter.isprintable() else " " for letter in str(error) or type(error).__name__)
    return " ".join(text.split())[:200].rstrip(".")


def _open_workplace(parent: Path) -> tuple[Path, BinaryIO]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        try:
            lock = open(folder / LOCK, "xb")
        except FileNotFoundError:  # swept away before it could be locked
            continue
        except BaseException:
            _remove(folder)
            raise
        try:
            _take(lock)
        except BlockingIOError:  # the same, at this moment
            lock.close()
            continue
        except OSError:  # a file system without locks: then nobody sweeps there
            return folder, lock
        if (folder / LOCK).exists():
            return folder, lock
        lock.close()


def _take(lock: BinaryIO | None) -> None:
    if fcntl is not None:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(parent: Path) -> None:
    """Remove the workplaces whose processes are gone."""
    abandoned = []
    with suppress(OSError), os.scandir(parent) as entries:
        abandoned = [Path(e.path) for e in entries if NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    for folder in abandoned:
        try:
            if fcntl is None:
                (folder / LOCK).unlink()
            with nullcontext() if fcntl is None else open(folder / LOCK, "r+b") as lock:
                _take(lock)
                _remove(folder)
        except FileNotFoundError:
            with suppress(OSError):  # not ours, unless it is empty
                folder.rmdir()
        except OSError:  # its process lives, or it is another user's
            continue


def _remove(folder: Path) -> None:
    """The lock last, so that what is left half removed is found again."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                with suppress(OSError):
                    path.unlink()
    shutil.rmtree(folder, ignore_errors=True)
