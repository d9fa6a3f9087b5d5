"""Recordings of Live Link Face: a CSV with ARKit's shapes, a row for each frame."""

import csv
import os
import re
import warnings
from pathlib import Path

import numpy as np

from ..landmarks.arkit import SHAPES, expression_of
from ..landmarks.expression import Expression
from ..landmarks.keyframes import MAX_FRAMES
from ..models.errors import FsthError, FsthWarning
from .texts import read_text


MAX_BYTES = 64 * 2**20
MAX_FPS = 32.0  # what is faster only costs time in a face, as in clips
TIME, HEAD = "Timecode", ("HeadYaw", "HeadPitch", "HeadRoll")
# Hours, minutes, seconds, frames and thousandths of a frame. What a frame is of a second the file does not say: phones
# count sixtieths, though they write thirty rows a second.
TIMECODE = re.compile(r"(\d{1,2}):(\d{2}):(\d{2})[:;](\d{1,3}(?:\.\d+)?)", re.ASCII)
BASES = (24, 25, 30, 50, 60, 120)


def read_live_link(path: str | os.PathLike) -> tuple[list[Expression], float]:
    """The expression of every frame, and frames per second; a head that was not recorded keeps still, with a warning.

    Raises:
        FsthError: It is no such recording, or is damaged.
    """
    name = Path(path).name
    try:
        lines = csv.reader(read_text(path, MAX_BYTES).splitlines(), strict=True)
        header, *rows = [row for row in lines if row]
    except (csv.Error, ValueError) as error:
        if isinstance(error, FsthError):
            raise
        raise FsthError(f"{name} holds no recording of Live Link Face: it is empty or damaged.") from error
    header = [column.strip() for column in header]
    for column in (TIME, *SHAPES):
        if column not in header:
            raise FsthError(f"{name} has no column {column}: export it from Live Link Face.")
    if not rows:
        raise FsthError(f"{name} has no rows: record it again.")
    if len(rows) > MAX_FRAMES:
        raise FsthError(f"{name} has {len(rows)} frames, but a motion has at most {MAX_FRAMES}: cut it.")
    names = [column for column in (*SHAPES, *HEAD) if column in header]
    places = [header.index(column) for column in names]
    values = np.empty((len(rows), len(names)))
    for number, row in enumerate(rows):
        try:
            values[number] = [float(row[place]) for place in places]
        except (ValueError, IndexError):
            values[number] = np.nan
        if not (np.abs(values[number]) < 100).all():
            raise FsthError(f"{name}: row {number + 2} is damaged; record or export it again.")
    head = [column for column in HEAD if column in names]
    if not values[:, [names.index(column) for column in head]].any():
        warnings.warn(f"The head columns of {name} are all zero: the head keeps still.", FsthWarning, stacklevel=2)

    times = _seconds(name, [row[header.index(TIME)] for row in rows])
    fps = float(np.round(1 / np.median(np.diff(times)), 2)) if len(times) > 1 else 30.0
    rate = fps / np.ceil(fps / MAX_FPS)
    count = round((times[-1] - times[0]) * rate) + 1
    if count > MAX_FRAMES:
        raise FsthError(f"The times of {name} span {times[-1] - times[0]:.0f} s, which is too long: cut it.")
    ticks = times[0] + np.arange(count) / rate
    even = np.stack([np.interp(ticks, times, column) for column in values.T], axis=1)
    frames = [dict(zip(names, row, strict=True)) for row in even.tolist()]
    turns = [[frame.get(column, 0.0) for column in HEAD] for frame in frames]
    return [expression_of(frame, *turn) for frame, turn in zip(frames, turns, strict=True)], float(rate)


def _seconds(name: str, codes: list[str]) -> np.ndarray:
    """Times of rows in seconds, which go forward."""
    parts = []
    for number, code in enumerate(codes):
        found = TIMECODE.fullmatch(code.strip())
        if not found:
            raise FsthError(f"{name}: row {number + 2} has no time that can be read, like 12:27:50:13.149.")
        parts.append([float(part) for part in found.groups()])
    hours, minutes, seconds, frames = np.array(parts).T
    whole = 3600 * hours + 60 * minutes + seconds
    whole += 86400 * np.cumsum(np.r_[0, np.diff(whole) < -43200])  # midnight
    largest = frames.max()
    # a recording that never comes to a new second does not tell its largest frame
    base = next((base for base in BASES if largest < base), 1000) if whole[-1] > whole[0] + 1 else max(60, largest + 1)
    times = whole + frames / base
    if (np.diff(times) <= 0).any():
        row = int(np.argmax(np.diff(times) <= 0)) + 3
        raise FsthError(f"{name}: the time of row {row} is not after the one before it; export it again.")
    return times
