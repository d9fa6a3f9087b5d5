"""Blinks that shut the eyes.

A detector does not see every shut eye as shut: under heavy lashes, from the side or small it leaves up to half of the
opening, and a portrait that follows it looks tired where it should blink. But a clip with a blink in it says what its
shut eyes look like, and from there the lids are led together. A camera's blinks say so too, once the first is over.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from ..models.landmark_layout import LEFT_EYE, RIGHT_EYE, eye_opening


BLINK_SECONDS = 0.6  # before and after a blink, within which eyes are open again: a smile narrows them for longer
# How far both eyes close in a blink, as shares of their opening around it: wholly believed, and not at all.
BELIEVED, DOUBTED = 0.6, 0.7
# How far one of them closes in it, as a share of its rest, to take part: wholly, and not at all, as in a wink. The
# farther eye of a turned head reads less shut than the nearer one.
TAKES_PART, STAYS_OPEN = 0.78, 0.9
EASE_SECONDS = 0.3  # time constant by which what a camera's new blink tells comes into use
REST_SECONDS, REST_FRAMES = 0.1, 600  # how often to look how far eyes are open at rest, and at how many such looks
LIDS = tuple(((eye[1], eye[5]), (eye[2], eye[4])) for eye in (RIGHT_EYE, LEFT_EYE))


def close_blinks(landmarks: Sequence[np.ndarray | None], fps: float) -> list[np.ndarray | None]:
    """
    The landmarks of one shot with eyes that shut in its deepest blink, and all others in proportion.

    Open eyes stay as they are. Where there is no blink, nothing changes.

    Args:
        landmarks: For each frame 78 x 2 pixels, or None where the face is gone.
        fps: Frames per second.

    Returns:
        As many frames.
    """
    seen = [index for index, points in enumerate(landmarks) if points is not None]
    if not seen:
        return list(landmarks)
    points = np.stack([landmarks[index] for index in seen])  # N x 78 x 2
    openings = np.stack([eye_opening(points, eye) for eye in (RIGHT_EYE, LEFT_EYE)], axis=1)  # N x 2
    blink, share = _deepest_blink(openings.mean(axis=1), np.array(seen) / fps)
    if share >= DOUBTED:
        return list(landmarks)
    rest = np.median(openings, axis=0)
    points = _led(points, openings, rest, _shut(openings[blink], rest, share))
    closed = list(landmarks)
    for index, frame in zip(seen, points, strict=True):
        closed[index] = frame
    return closed


class BlinkCloser:
    """`close_blinks` for landmarks as they come, of which only the past is known.

    Nothing changes until a blink is over: only the eye that has opened again shortly after was no narrow one. From
    then on the deepest so far tells what shut is, and each deeper one tells it anew, never at once.
    """

    def __init__(self):
        self.share = DOUBTED  # of the deepest blink so far; what closes no further is none
        self.deepest = None  # openings in it, 2
        self.time = 0.0  # s, since the first frame
        self._recent: deque[tuple[float, np.ndarray]] = deque()  # when eyes were seen, and their openings, 2 each
        self._resting: deque[np.ndarray] = deque(maxlen=REST_FRAMES)
        self._looked = -np.inf
        self._rest = self._shut = None  # in use, 2 each; None before a blink

    def __call__(self, points: np.ndarray | None, elapsed: float) -> np.ndarray | None:
        """Lead the lids of the next frame.

        Args:
            points: 78 x 2, pixels, or None where the face is gone.
            elapsed: Seconds since the frame before.

        Returns:
            78 x 2, or None.
        """
        self.time += elapsed
        if points is None:
            return None
        openings = np.concatenate([eye_opening(points[None], eye) for eye in (RIGHT_EYE, LEFT_EYE)])  # 2
        self._remember(openings)
        if self.deepest is None:
            return points
        rest = np.median(self._resting, axis=0)
        shut = _shut(self.deepest, rest, self.share)
        if self._rest is None:  # led nowhere at first
            self._rest, self._shut = rest, np.zeros(2)
        ease = 1 - np.exp(-elapsed / EASE_SECONDS)
        self._rest = self._rest + ease * (rest - self._rest)
        self._shut = self._shut + ease * (shut - self._shut)
        return _led(points[None], openings[None], self._rest, self._shut)[0]

    def _remember(self, openings: np.ndarray) -> None:
        """Note how far the eyes are open, and whether that was the end of a blink deeper than those before."""
        if self.time - self._looked >= REST_SECONDS:  # by the clock: a camera's frames come as they can
            self._looked = self.time
            self._resting.append(openings)
        self._recent.append((self.time, openings))
        while self._recent[0][0] < self.time - 2 * BLINK_SECONDS:
            self._recent.popleft()
        times, recent = (np.array(values) for values in zip(*self._recent, strict=True))
        blink, share = _deepest_blink(recent.mean(axis=1), times)
        if share < self.share:
            self.share, self.deepest = share, recent[blink]


def _shut(deepest: np.ndarray, rest: np.ndarray, share: float) -> np.ndarray:
    """The openings (2) from which eyes are led to their end, of those in the deepest blink, at rest, and its share."""
    trust = np.clip((DOUBTED - share) / (DOUBTED - BELIEVED), 0, 1)
    part = np.clip((STAYS_OPEN - deepest / rest.clip(1e-6)) / (STAYS_OPEN - TAKES_PART), 0, 1)
    return trust * part * deepest


def _led(points: np.ndarray, openings: np.ndarray, rest: np.ndarray, shut: np.ndarray) -> np.ndarray:
    """Points (N x 78 x 2) with upper lids led to the lower ones, by openings now (N x 2), at rest and shut (2)."""
    way = np.clip((rest - openings) / (rest - shut).clip(1e-6), 0, None)  # from rest to shut
    # how far the upper lid goes to the lower; squared, so that what hardly moves stays, with its jitter
    led = np.clip(shut * way**2 / openings.clip(1e-6), 0, 1)  # N x 2
    points = points.copy()
    for eye, pairs in enumerate(LIDS):
        for upper, lower in pairs:
            points[:, upper] += led[:, eye, None] * (points[:, lower] - points[:, upper])
    return points


def _deepest_blink(openings: np.ndarray, times: np.ndarray) -> tuple[int, float]:
    """The frame in which eyes (N openings at N times, seconds) are most shut, measured by how far they are open
    shortly before and shortly after, and that share."""
    shares = np.empty(len(openings))
    for index, time in enumerate(times):
        first, last = np.searchsorted(times, [time - BLINK_SECONDS, time + BLINK_SECONDS + 1e-6])
        around = min(openings[first : index + 1].max(), openings[index:last].max())
        shares[index] = openings[index] / max(around, 1e-6)
    blink = int(np.argmin(shares))
    return blink, float(shares[blink])
