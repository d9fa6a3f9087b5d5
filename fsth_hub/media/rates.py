"""The constant rate at which a clip is given, so that no picture moves far from its moment."""

import math

import numpy as np

from .frames import FPS_RANGE


MAX_FPS = 32.0  # phones say 30 and mean a little more; what is faster only costs time in a face
VARIABLE_FPS = 30.0  # of what has no rate of its own
# Of a frame that a picture may begin after the tick that shows it. No whole ratio of rates up to 8 is near: where the
# clip is 2 or 4 times as fast, rounded time stamps (mkv has milliseconds) must not decide which picture is shown.
GRACE = 0.45
STEP = 0.018  # s that a picture may move, so that with what sound moves it is 0.02


def ticks(seconds, fps: float):
    """How many frames of a constant rate begin before that moment, or an array of them: the first tick that shows what
    begins then."""
    return np.ceil(np.asarray(seconds) * fps - GRACE)


def average_rate(starts: np.ndarray) -> float | None:
    """Frames per second where pictures follow on one another, holes left out; None if they never do."""
    steps = np.diff(starts)
    steps = steps[steps > 0]
    if not len(steps):
        return None
    usual = np.median(steps)
    return float(1 / steps[np.abs(steps - usual) < max(0.1 * usual, 0.0015)].mean())


def constant_rate(starts: np.ndarray, rate: float) -> float:
    """
    Frames per second to give a clip at: its average, or that of its usual pictures, or a whole part of it that is not
    above `MAX_FPS`; and 30 where neither has nearly all of its pictures in step with the sound.

    Args:
        starts: When each picture begins, s from the first one, ascending.
        rate: The average.
    """
    for candidate in (rate, average_rate(starts) or rate):
        candidate = float(np.clip(candidate, *FPS_RANGE))
        part = math.ceil(candidate / MAX_FPS)
        fps = candidate / part
        moved = np.abs(ticks(starts, fps) / fps - starts)
        # what is left out of a fast clip is half a frame away, but no further
        if np.quantile(moved, 0.99) <= (STEP if part == 1 else max(STEP, 0.5 / fps + 0.001)):
            return fps
    return VARIABLE_FPS
