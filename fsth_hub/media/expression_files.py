"""Keyframes of expressions in a file that people can write: JSON."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..landmarks.expression import Expression
from ..landmarks.keyframes import Keyframe, check_keyframes
from ..models.errors import FsthError
from ..saving import whole_file
from .frames import FPS_RANGE
from .texts import check_suffix, read_text


SUFFIX = ".expressions.json"
FORMAT, VERSION = "fsth_hub.expressions", 1
MAX_BYTES = 4 * 2**20
MAX_KEYFRAMES = 10_000


def write_expressions(
    path: str | os.PathLike, keyframes: Sequence[Keyframe], fps: float = 25.0, loop: bool = False
) -> None:
    """Write keyframes, to be read by people too; the file's name must end in ".expressions.json"."""
    check_keyframes(keyframes)
    content = {"format": FORMAT, "version": VERSION, "fps": fps, "loop": loop}
    content["keyframes"] = [{"t": time} | expression.to_dict() for time, expression in keyframes]
    check_suffix(path, SUFFIX)
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_expressions(path: str | os.PathLike) -> tuple[list[Keyframe], float, bool]:
    """Keyframes, frames per second, and whether the motion is to be repeated.

    Raises:
        FsthError: The file cannot be read, or a value does not fit.
    """
    name = Path(path).name
    try:
        content = json.loads(read_text(path, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, FsthError):
            raise
        raise FsthError(f"{name} is no JSON that can be read: {str(error)[:100]}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FsthError(f'{name} holds no expressions: it must say "format": "{FORMAT}".')
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise FsthError(f"{name} was made by a newer fsth_hub (expressions version {version}): update.")
    fps, loop, frames = content.get("fps", 25), content.get("loop", False), content.get("keyframes")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not FPS_RANGE[0] <= fps <= FPS_RANGE[1]:
        raise FsthError(f"{name}: fps must be a number of frames per second, not {fps!r}.")
    if not isinstance(loop, bool):
        raise FsthError(f"{name}: loop must be true or false, not {loop!r}.")
    unknown = set(content) - {"format", "version", "fps", "loop", "keyframes"}
    if version != VERSION or unknown or not isinstance(frames, list) or len(frames) > MAX_KEYFRAMES:
        what = f"there is no field '{min(unknown)}'" if unknown else 'it needs "version": 1 and a list of keyframes'
        raise FsthError(f"{name} holds no expressions that can be used: {what}.")
    keyframes = []
    for frame in frames:
        if not isinstance(frame, dict) or "t" not in frame:
            raise FsthError(f'{name}: each keyframe needs its time in seconds, as in {{"t": 0.8, "smile": 1}}.')
        keyframes.append((frame["t"], Expression.of({key: value for key, value in frame.items() if key != "t"})))
    check_keyframes(keyframes)
    return keyframes, float(fps), loop
