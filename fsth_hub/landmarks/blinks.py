"""Blinks that shut the eyes.

A detector does not see every shut eye as shut: under heavy lashes, from the side or small it leaves up to six tenths
of the opening, more in one blink than in the next, and a portrait that follows it looks tired where it should blink.
But eyes that close so far and open again at once are shut in between (training/LOG.md, entry 23), so each blink is led
to its end. Before a camera the blinks that are over say how those to come will read.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..models.landmark_layout import EYES, LOWER_LIDS, UPPER_LIDS, eye_opening


BLINK_SECONDS = 0.6  # before and after a blink, within which eyes are open again: a smile narrows them for longer
BETWEEN_SECONDS = 0.15  # how far apart the lowest frames of two blinks are, at least
# How far both eyes close in a blink, as shares of their opening around it: wholly believed, and not at all.
BELIEVED, DOUBTED = 0.6, 0.7
# How far one of them closes in it, as a share of its rest, to take part: wholly, and not at all, as in a wink. The
# farther eye of a turned head reads less shut than the nearer one.
TAKES_PART, STAYS_OPEN = 0.78, 0.9
EASE_SECONDS = 0.3  # time constant by which what a camera's new blink tells comes into use
LAST_BLINKS = 8  # of a camera, which tell how the next ones will read
REST_SECONDS, REST_FRAMES = 0.1, 600  # how often to look how far eyes are open at rest, and at how many such looks


class Blink(NamedTuple):
    """The lowest frame of a blink.

    Args:
        time: When it is seen, seconds.
        first, last: The frames between which it lies, those with eyes most open shortly before and shortly after.
        openings: Of both eyes in it, 2.
        rest: The same around it, 2.
        share: How far the eyes are open in it, of their rest.
    """

    time: float
    first: int
    last: int
    openings: np.ndarray
    rest: np.ndarray
    share: float

    @property
    def part(self) -> np.ndarray:
        """How far each eye takes part, 0 to 1."""
        return np.clip((STAYS_OPEN - self.openings / self.rest.clip(1e-6)) / (STAYS_OPEN - TAKES_PART), 0, 1)

    @property
    def shut(self) -> np.ndarray:
        """The openings (2) from which eyes are led to their end."""
        return np.clip((DOUBTED - self.share) / (DOUBTED - BELIEVED), 0, 1) * self.part * self.openings


def close_blinks(landmarks: Sequence[np.ndarray | None], fps: float) -> list[np.ndarray | None]:
    """
    The landmarks of one shot with eyes that shut in each of its blinks.

    Where there is no blink, nothing changes.

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
    openings = eye_opening(points, EYES)  # N x 2
    closing = np.zeros_like(openings)
    for blink in find_blinks(openings, np.array(seen) / fps):
        frames = slice(blink.first, blink.last + 1)
        further = how_far(openings[frames], blink.rest, blink.shut, blink.part)
        closing[frames] = np.maximum(closing[frames], further)
    points = close_lids(points, closing)
    closed = list(landmarks)
    for index, frame in zip(seen, points, strict=True):
        closed[index] = frame
    return closed


class BlinkCloser:
    """`close_blinks` for landmarks as they come, of which only the past is known.

    Nothing changes until a blink is over: only the eye that has opened again shortly after was no narrow one. From
    then on the last ones tell how a shut eye reads, each new one never at once.
    """

    def __init__(self):
        self.blinks: list[Blink] = []  # the last ones, of which those of the last 0.6 s may still turn out to be none
        self.time = 0.0  # s, since the first frame
        self._recent: deque[tuple[float, np.ndarray]] = deque()  # when eyes were seen, and their openings, 2 each
        self._resting: deque[np.ndarray] = deque(maxlen=REST_FRAMES)
        self._looked = -np.inf
        self._rest = self._shut = self._part = None  # in use, 2 each; None before a blink

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
        openings = eye_opening(points[None], EYES)
        self._remember(openings[0])
        rest, shut = np.median(self._resting, axis=0), np.zeros(2)
        if self.blinks:
            shut = np.mean([blink.shut for blink in self.blinks], axis=0)
            self._part = np.mean([blink.part for blink in self.blinks], axis=0)
        elif self._rest is None:
            return points
        if self._rest is None:  # led nowhere at first
            self._rest, self._shut = rest, np.zeros(2)
        ease = 1 - np.exp(-elapsed / EASE_SECONDS)
        self._rest = self._rest + ease * (rest - self._rest)
        self._shut = self._shut + ease * (shut - self._shut)
        return close_lids(points[None], how_far(openings, self._rest, self._shut, self._part))[0]

    def _remember(self, openings: np.ndarray) -> None:
        """Note how far the eyes are open, and what blinks that makes of the last frames."""
        if self.time - self._looked >= REST_SECONDS:  # by the clock: a camera's frames come as they can
            self._looked = self.time
            self._resting.append(openings)
        before = self._recent[-1][0] if self._recent else -np.inf
        self._recent.append((self.time, openings))
        while len(self._recent) > 1 and self._recent[1][0] <= before - 2 * BLINK_SECONDS:
            self._recent.popleft()
        times, recent = (np.array(values) for values in zip(*self._recent, strict=True))
        # what had its 0.6 s by the frame before was judged with all of them, and that stands
        judged = [blink for blink in self.blinks if before - blink.time >= BLINK_SECONDS]
        self.blinks = judged + [b for b in find_blinks(recent, times) if before - b.time < BLINK_SECONDS]
        del self.blinks[:-LAST_BLINKS]


def find_blinks(openings: np.ndarray, times: np.ndarray) -> list[Blink]:
    """The blinks among N openings of both eyes (N x 2) at N times (seconds), in their order."""
    both = openings.mean(axis=1)
    blinks = []
    for index, time in enumerate(times):
        low, high = np.searchsorted(times, [time - BETWEEN_SECONDS, time + BETWEEN_SECONDS + 1e-6])
        if index != low + np.argmin(both[low:high]):
            continue
        low, high = np.searchsorted(times, [time - BLINK_SECONDS, time + BLINK_SECONDS + 1e-6])
        first, last = low + int(np.argmax(both[low : index + 1])), index + int(np.argmax(both[index:high]))
        lower, higher = sorted((first, last), key=both.__getitem__)
        # where the clip begins or ends sooner, eyes that come back half the way are taken to go on
        cut = time - times[0] < BLINK_SECONDS if lower == first else times[-1] - time < BLINK_SECONDS
        rest = higher if cut and both[lower] >= (both[higher] + both[index]) / 2 else lower
        share = both[index] / max(both[rest], 1e-6)
        if share < DOUBTED:
            blinks.append(Blink(float(time), first, last, openings[index], openings[rest], float(share)))
    return blinks


def how_far(openings: np.ndarray, rest: np.ndarray, shut: np.ndarray, part: np.ndarray) -> np.ndarray:
    """
    How far each upper lid is to go to the lower one.

    Args:
        openings: N x 2.
        rest, shut: The openings (2) from which eyes begin to close, and at which they are to be shut.
        part: How far each eye takes part, 0 to 1, 2.

    Returns:
        Shares of the way, N x 2.
    """
    way = np.clip((rest - openings) / (rest - shut).clip(1e-6), 0, None)  # from rest to shut
    way += part.min() * (way.mean(axis=1, keepdims=True) - way)  # two eyes blink as one
    # squared, so that what hardly moves stays, with its jitter
    return np.clip(shut * way**2 / openings.clip(1e-6), 0, 1)


def close_lids(points: np.ndarray, closing: np.ndarray) -> np.ndarray:
    """Points (N x 78 x 2) with upper lids led to the lower ones, so far (N x 2)."""
    points = points.copy()
    points[:, UPPER_LIDS] += closing[..., None, None] * (points[:, LOWER_LIDS] - points[:, UPPER_LIDS])
    return points
