"""The one layout of landmarks that everything here speaks: 78 points, x then y, in pixels.

Points 0 to 67 are the iBUG 300-W points. 68 to 72 are the iris of the eye 36 to 41 (the person's right, on the left of
a picture), 73 to 77 that of the eye 42 to 47; of each first the centre, then the ring: the point towards the picture's
right, the upper, the one towards the picture's left, the lower. Coordinates are continuous: the first pixel reaches
from 0 to 1, its centre lies at 0.5. A point that a detector does not know is NaN.
"""

import numpy as np


NUM_POINTS = 78

# Right and left are the person's own, as in iBUG: RIGHT_EYE is the one on the left of a picture.
JAW = np.arange(0, 17)
RIGHT_BROW = np.arange(17, 22)
LEFT_BROW = np.arange(22, 27)
NOSE_BRIDGE = np.arange(27, 31)
NOSE_BASE = np.arange(31, 36)
RIGHT_EYE = np.arange(36, 42)
LEFT_EYE = np.arange(42, 48)
EYES = np.stack([RIGHT_EYE, LEFT_EYE])  # 2 x 6
UPPER_LIDS, LOWER_LIDS = EYES[:, [1, 2]], EYES[:, [5, 4]]  # 2 x 2, facing each other
OUTER_LIPS = np.arange(48, 60)
INNER_LIPS = np.arange(60, 68)
FACE = np.arange(0, 68)
RIGHT_IRIS = np.arange(68, 73)
LEFT_IRIS = np.arange(73, 78)
IRISES = np.arange(68, 78)
# Points that hardly move on the skull: the ends of the jaw, the nose, the corners of the eyes.
RIGID = np.r_[0:4, 13:17, 27:36, [36, 39, 42, 45]]

# points[FLIP] is the order of the points in the mirrored picture (whose x is still to be mirrored).
FLIP = np.concatenate([
    JAW[::-1],
    np.arange(17, 27)[::-1],
    NOSE_BRIDGE,
    NOSE_BASE[::-1],
    [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40],
    np.arange(48, 55)[::-1], np.arange(55, 60)[::-1],
    np.arange(60, 65)[::-1], np.arange(65, 68)[::-1],
    [73, 76, 75, 74, 77, 68, 71, 70, 69, 72],
])  # fmt: skip


def interocular(points: np.ndarray) -> np.ndarray:
    """Distance between the centres of the eyes.

    Args:
        points: ... x 78 x 2 (or 68 x 2), pixels.

    Returns:
        Distances in pixels, of the leading shape.
    """
    between = points[..., LEFT_EYE, :].mean(axis=-2) - points[..., RIGHT_EYE, :].mean(axis=-2)
    return np.linalg.norm(between, axis=-1)


def eye_opening(points, eye: np.ndarray):
    """How far an eye is open: the distance between its lids in widths of the eye.

    Args:
        points: ... x 78 x 2 (or 68 x 2), an array or a tensor, in any units.
        eye: `RIGHT_EYE` or `LEFT_EYE`, or both, `EYES`.

    Returns:
        The same kind, of the leading shape, with both eyes ... x 2.
    """
    outline = points[..., eye, :]  # ... x 6 x 2
    spans = ((outline[..., [0, 1, 2], :] - outline[..., [3, 5, 4], :]) ** 2).sum(-1) ** 0.5  # ... x 3: width, lids
    return spans[..., 1:].mean(-1) / spans[..., 0].clip(1e-6)


def face_box(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upright bounding box of the 68 face points.

    Args:
        points: ... x 78 x 2 (or 68 x 2), pixels.

    Returns:
        The box's centre and its width and height, both ... x 2, pixels.
    """
    face = points[..., FACE, :]
    low, high = face.min(axis=-2), face.max(axis=-2)
    return (low + high) / 2, high - low


def face_extent(points: np.ndarray) -> np.ndarray:
    """Size of a face: the larger side of its bounding box, in pixels, of the leading shape of `points`."""
    return face_box(points)[1].max(axis=-1)
