"""A movement that goes on for ever: where it can begin again, and how the seam is hidden."""

from collections.abc import Sequence

import numpy as np

from ..models.landmark_layout import FACE, interocular


MIN_SECONDS = 1.0
SEAM_SECONDS = 0.4  # over which what is left of the jump is spread
MAX_JUMP = 0.15  # distances between the eyes, of any point; where no pair jumps less, it goes back and forth
SPEED_WEIGHT = 0.2  # s, by which a frame's speed counts against its place
MAX_COMPARED = 1500  # frames, of which each is compared with each


def close_loop(frames: Sequence[np.ndarray | None], fps: float) -> list[np.ndarray]:
    """Frames that can be repeated without a jump.

    The two frames most like each other, in place and in speed, become the seam: at least a second and half of the
    movement apart. What they differ by is spread over the frames before it. Where none are alike, the frames run
    forwards and back.

    Args:
        frames: 78 x 2 each; where there is None the last face is held.
        fps: Frames per second.

    Returns:
        The frames of one round; the first follows on the last.
    """
    held = _filled(frames)
    apart = max(round(MIN_SECONDS * fps), len(held) // 2, 1)
    if len(held) <= apart:
        return back_and_forth(held)
    points = np.stack(held)  # N x 78 x 2
    unit = interocular(points[0])
    places = (points[:, FACE] / unit).reshape(len(points), -1)
    # so that a distance is the mean one of a point
    features = np.hstack([places, SPEED_WEIGHT * fps * np.gradient(places, axis=0)]) / np.sqrt(len(FACE))

    step = -(-len(features) // MAX_COMPARED)
    chosen = np.arange(0, len(features), step)
    some = features[chosen] - features.mean(axis=0)
    squares = np.square(some).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * some @ some.T, 0))
    distances[chosen[None] - chosen[:, None] < apart] = np.inf
    first, last = chosen[list(np.unravel_index(np.argmin(distances), distances.shape))]
    jump = np.linalg.norm(points[last] - points[first], axis=1)[FACE] / unit
    if jump.max() > MAX_JUMP:
        return back_and_forth(held)
    width = min(round(SEAM_SECONDS * fps), last - first)
    share = np.arange(1, width + 1) / (width + 1)
    share = (share * share * (3 - 2 * share))[:, None, None]
    loop = points[first:last].copy()
    if width:
        loop[-width:] -= share * (points[last] - points[first])
    return list(loop)


def back_and_forth(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The frames, and back again to the second."""
    return [*frames, *frames[-2:0:-1]]


def _filled(frames: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """The frames, each without a face as the last one before it, or the first one after it."""
    held, last = [], next(points for points in frames if points is not None)
    for points in frames:
        last = last if points is None else points
        held.append(last)
    return held
