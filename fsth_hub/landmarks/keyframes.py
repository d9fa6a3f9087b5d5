"""Expressions at some moments, and those in between."""

from collections.abc import Sequence
from numbers import Real

from ..models.errors import FsthError
from .expression import Expression


Keyframe = tuple[float, Expression]  # seconds, and how the face looks then

MAX_SECONDS, MAX_FRAMES = 3600, 100_000


def check_keyframes(keyframes: Sequence[Keyframe]) -> None:
    """Refuse (`FsthError`) what is no expression, and times that do not go forward from 0 s."""
    if not keyframes:
        raise FsthError("Give at least one keyframe: a time in seconds and an expression.")
    last = None
    for keyframe in keyframes:
        try:
            time, expression = keyframe
        except (TypeError, ValueError):
            raise FsthError(f"A keyframe is a time in seconds and an expression, not {repr(keyframe)[:40]}.") from None
        if not isinstance(expression, Expression):
            raise FsthError(f"A keyframe needs an Expression, not {type(expression)}.")
        if isinstance(time, bool) or not (isinstance(time, Real) and 0 <= time <= MAX_SECONDS):
            raise FsthError(f"A keyframe's time is from 0 to {MAX_SECONDS:g} s, not {repr(time)[:40]}.")
        if last is not None and time <= last:
            raise FsthError(f"Keyframes must go forward in time: {time:g} s comes after {last:g} s.")
        last = time


def interpolate(keyframes: Sequence[Keyframe], fps: float, loop: bool) -> list[Expression]:
    """The expression of every frame, from the first keyframe at 0 s to the last; eased in and out between them.

    Args:
        keyframes: Forward in time; before the first one the face looks as it does then.
        fps: Frames per second.
        loop: The first keyframe follows on the last: where they differ, in as much time as the last step took.

    Raises:
        FsthError: The keyframes do not fit.
    """
    check_keyframes(keyframes)
    keyframes = list(keyframes)
    if loop and len(keyframes) > 1 and keyframes[-1][1] != keyframes[0][1]:
        end = keyframes[-1][0]
        keyframes.append((2 * end - keyframes[-2][0], keyframes[0][1]))
    steps = round(keyframes[-1][0] * fps)
    count = max(1, steps) if loop else steps + 1
    if count > MAX_FRAMES:
        raise FsthError(f"The keyframes make {count} frames, but a motion has at most {MAX_FRAMES}: end them earlier.")
    frames, at = [], 0
    for index in range(count):
        time = index / fps
        while at + 1 < len(keyframes) and keyframes[at + 1][0] <= time:
            at += 1
        begin, first = keyframes[at]
        if at + 1 == len(keyframes) or time <= begin:
            frames.append(first)
            continue
        end, second = keyframes[at + 1]
        share = (time - begin) / (end - begin)
        frames.append(first.blend(second, share * share * (3 - 2 * share)))
    return frames
