"""Landmarks without their detector's jitter.

A One Euro filter (Casiez et al., CHI 2012; MediaPipe smooths its own landmarks with it): a low-pass filter whose
cutoff rises with speed, so that what rests is quiet and what moves is not held back. The head and the face's
expression are filtered apart, for the skull moves slowly where lids, irises and lips are quick, and most of the
jitter is the head's: a blink survives what the head needs.
"""

from collections.abc import Sequence

import numpy as np

from ..checks import check_number
from ..models.errors import FsthError
from .pose import UNITS_BETWEEN_EYES, Pose


DEFAULT_SMOOTHING = 0.03  # s
MAX_SMOOTHING = 1.0  # s; a head that lags longer than that follows nobody

# Of the head and of the expression: by how many Hz the cutoff rises for each distance between the eyes per second,
# and the cutoff in Hz of the speed itself. The best of a sweep over six clips: quiet, and nearly all of a blink left.
HEAD = (5.0, 1.0)
EXPRESSION = (80.0, 5.0)

MAX_JUMP = 0.5  # distances between the eyes: who moves further from one frame to the next is another shot's face


class OneEuroFilter:
    """Filters vectors that come one after the other, each with a cutoff of its own.

    Args:
        seconds: Time constant at rest.
        gain: By how many Hz the cutoff rises with each unit of speed (units of the vectors per second).
        speed_cutoff: Cutoff in Hz of the speed, which is estimated from trembling values too.
    """

    def __init__(self, seconds: float, gain: float, speed_cutoff: float):
        self.cutoff = 1 / (2 * np.pi * seconds)
        self.gain, self.speed_cutoff = gain, speed_cutoff
        self.last = self.filtered = self.velocity = None

    def __call__(self, values: np.ndarray, elapsed: float) -> np.ndarray:
        """Filter the next vectors (... x D); `elapsed` are the seconds since the last. What was NaN begins anew."""
        if self.last is None:
            self.last, self.filtered, self.velocity = values, values, np.zeros_like(values)
            return values
        velocity = np.nan_to_num((values - self.last) / elapsed)
        self.velocity = self.velocity + _share(self.speed_cutoff, elapsed) * (velocity - self.velocity)
        speed = np.linalg.norm(self.velocity, axis=-1, keepdims=True)
        filtered = self.filtered + _share(self.cutoff + self.gain * speed, elapsed) * (values - self.filtered)
        self.last, self.filtered = values, np.where(np.isfinite(filtered), filtered, values)
        return self.filtered


def _share(cutoff: float | np.ndarray, elapsed: float) -> float | np.ndarray:
    """How much of a change a low-pass filter of this cutoff (Hz) lets through after so many seconds."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff * elapsed))


class LandmarkSmoother:
    """Smooths one face's landmarks as they come, for live use: only the past is known, so a moving head lags a little.

    Args:
        seconds: Time constant at rest, above 0 to 1 s.

    Raises:
        FsthError: The time constant is out of range.
    """

    def __init__(self, seconds: float = DEFAULT_SMOOTHING):
        check_smoothing(seconds)
        if seconds == 0:
            raise FsthError("A smoothing of 0 s changes nothing: leave the landmarks as they are.")
        self.seconds = seconds
        self._restart(None)

    def _restart(self, pose: Pose | None) -> None:
        self.last = pose
        self.unit = None if pose is None else UNITS_BETWEEN_EYES * pose.scale  # the distance between the eyes, pixels
        self.centre, self.axes = (OneEuroFilter(self.seconds, *HEAD) for _ in range(2))
        self.upright = OneEuroFilter(self.seconds, *EXPRESSION)

    def __call__(self, points: np.ndarray | None, elapsed: float) -> np.ndarray | None:
        """Smooth the next frame's points.

        Args:
            points: 78 x 2, pixels, or None where the face is gone; what comes after a gap begins anew.
            elapsed: Seconds since the frame before, above 0.

        Returns:
            78 x 2 float32, pixels, or None.
        """
        if points is None:
            self._restart(None)
            return None
        pose = Pose.of(points)
        if self.last is None or np.linalg.norm(pose.centre - self.last.centre) > MAX_JUMP * self.unit:
            self._restart(pose)
        self.last = pose
        # all in distances between the eyes of the first frame
        centre = self.unit * self.centre(pose.centre / self.unit, elapsed)
        axes = pose.rotation[:2] * pose.scale * UNITS_BETWEEN_EYES / self.unit  # 2 x 3: turn and size
        head = Pose.nearest(self.axes(axes, elapsed) * self.unit / UNITS_BETWEEN_EYES, centre)
        upright = UNITS_BETWEEN_EYES * self.upright(pose.lift(points) / UNITS_BETWEEN_EYES, elapsed)  # 78 x 3
        return head.project(upright).astype(np.float32)


def smooth_clip(
    landmarks: Sequence[np.ndarray | None], fps: float, seconds: float = DEFAULT_SMOOTHING
) -> list[np.ndarray | None]:
    """Smooth the landmarks of a whole clip without lag: forwards, and then backwards, so that the delays cancel.

    Args:
        landmarks: For each frame 78 x 2 pixels, or None where the face is gone; gaps are never smoothed across.
        fps: Frames per second.
        seconds: Time constant at rest, 0 (nothing is changed) to 1 s.

    Returns:
        As many frames, 78 x 2 float32 or None.

    Raises:
        FsthError: The time constant is out of range.
    """
    check_smoothing(seconds)
    if seconds == 0:
        return list(landmarks)
    for _ in range(2):
        smooth = LandmarkSmoother(seconds)
        landmarks = [smooth(points, 1 / fps) for points in landmarks][::-1]
    return landmarks


def smooth_shots(
    landmarks: Sequence[np.ndarray | None],
    fps: float,
    seconds: float = DEFAULT_SMOOTHING,
    shots: Sequence[tuple[int, int]] = (),
) -> list[np.ndarray | None]:
    """`smooth_clip` of each shot (first frame, the one after its last), and never across a cut."""
    shots = shots or [(0, len(landmarks))]
    return [points for start, stop in shots for points in smooth_clip(landmarks[start:stop], fps, seconds)]


def check_smoothing(seconds: float) -> None:
    """Refuse (`FsthError`) a time constant that is out of range."""
    check_number("smoothing, in seconds,", seconds, 0, MAX_SMOOTHING)
