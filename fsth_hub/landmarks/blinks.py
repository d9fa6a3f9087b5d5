"""Blinks that shut the eyes.

A detector does not see every shut eye as shut: under heavy lashes, from the side or small it leaves up to half of the
opening, and a portrait that follows it looks tired where it should blink. But a clip with a blink in it says what its
shut eyes look like, and from there the lids are led together.
"""

from collections.abc import Sequence

import numpy as np

from ..models.landmark_layout import LEFT_EYE, RIGHT_EYE, eye_opening


BLINK_SECONDS = 0.6  # before and after a blink, within which eyes are open again: a smile narrows them for longer
# How far both eyes close in a blink, as shares of their opening around it: wholly believed, and not at all.
BELIEVED, DOUBTED = 0.6, 0.7
# How far one of them closes in it, as a share of its rest, to take part: wholly, and not at all, as in a wink. The
# farther eye of a turned head reads less shut than the nearer one.
TAKES_PART, STAYS_OPEN = 0.78, 0.9
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
    trust = np.clip((DOUBTED - share) / (DOUBTED - BELIEVED), 0, 1)
    if trust == 0:
        return list(landmarks)
    rest = np.median(openings, axis=0)
    part = np.clip((STAYS_OPEN - openings[blink] / rest.clip(1e-6)) / (STAYS_OPEN - TAKES_PART), 0, 1)
    shut = trust * part * openings[blink]
    way = np.clip((rest - openings) / (rest - shut).clip(1e-6), 0, None)  # from rest to shut
    # how far the upper lid goes to the lower; squared, so that what hardly moves stays, with its jitter
    led = np.clip(shut * way**2 / openings.clip(1e-6), 0, 1)
    points = points.copy()
    for eye, pairs in enumerate(LIDS):
        for upper, lower in pairs:
            points[:, upper] += led[:, eye, None] * (points[:, lower] - points[:, upper])
    closed = list(landmarks)
    for index, frame in zip(seen, points, strict=True):
        closed[index] = frame
    return closed


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
