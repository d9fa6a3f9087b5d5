"""Whether the background of generated frames rests where the truth's does.

Pictures are S x S x 3 uint8 RGB, landmarks 78 x 2 pixels.
"""

from itertools import pairwise

import cv2
import numpy as np

from fsth_hub.models.landmark_layout import FACE, interocular


MAX_STILL = 0.3  # pixels of the truth's flow from one frame to the next
HEAD_MARGIN = 0.5  # distances between the eyes around the outline of the landmarks: hair, ears and neck
# Pixels, and the standard deviation of the grey values there without which no flow is seen.
TEXTURE_WINDOW, MIN_TEXTURE = 9, 3.0
MIN_SHARE = 0.01  # of the frame that must stand still


def to_grey(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)


def optical_flow(frame: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Where each pixel moves from one grey frame to the next, S x S x 2 pixels, x then y."""
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(frame, following, None)


def flow_magnitude(frame: np.ndarray, following: np.ndarray) -> np.ndarray:
    """How far each pixel moves from one grey frame to the next, S x S pixels."""
    return np.linalg.norm(optical_flow(frame, following), axis=2)


def around_head(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Where the head is, with a margin: size x size bool."""
    mask = np.zeros((size, size), np.uint8)
    outline = cv2.convexHull(landmarks[FACE].round().astype(np.int32))
    cv2.fillConvexPoly(mask, outline, 1)
    reach = 2 * int(round(HEAD_MARGIN * float(interocular(landmarks)))) + 1
    return cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))).astype(bool)


def texture(frame: np.ndarray) -> np.ndarray:
    """Standard deviation of a grey frame's values in the window around each pixel."""
    values, window = frame.astype(np.float64), (TEXTURE_WINDOW, TEXTURE_WINDOW)
    variance = cv2.blur(values**2, window) - cv2.blur(values, window) ** 2
    return np.sqrt(np.maximum(variance, 0))


class Background:
    """
    What stands still in a clip behind the head.

    Args:
        frames: of the true clip, in order.
        landmarks: of each frame.
    """

    def __init__(self, frames: list[np.ndarray], landmarks: np.ndarray):
        greys, heads = [to_grey(frame) for frame in frames], [around_head(p, len(frames[0])) for p in landmarks]
        self.still = [  # for each frame but the last, S x S bool
            (flow_magnitude(frame, following) < MAX_STILL) & ~head & ~following_head & (texture(frame) > MIN_TEXTURE)
            for (frame, following), (head, following_head) in zip(pairwise(greys), pairwise(heads), strict=True)
        ]

    def swim(self, fake: list[np.ndarray]) -> float | None:
        """How far the generated background moves from frame to frame where the true one stands still: mean over
        pairs of frames, pixels. `None` where nothing stands still, or nothing could be seen to move.
        """
        pairs = pairwise([to_grey(frame) for frame in fake])
        moved = [
            flow_magnitude(*pair)[still].mean()
            for pair, still in zip(pairs, self.still, strict=True)
            if still.mean() >= MIN_SHARE
        ]
        return float(np.mean(moved)) if moved else None
