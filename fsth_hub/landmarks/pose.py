"""Where a head is and which way it faces, from its flat landmarks and a mean face in space."""

from dataclasses import dataclass, replace

import numpy as np

from ..models.landmark_layout import LEFT_EYE, LEFT_IRIS, NUM_POINTS, RIGHT_EYE, RIGHT_IRIS, RIGID


# x to the picture's right, y down, z away from the viewer, in hundredths of the distance between the eyes: the mean,
# made symmetric, of what the MediaPipe mesh says about eight public-domain paintings. It serves to tell the head's
# turn and to guess depth, for which a mean is enough.
MEAN_FACE = np.full((NUM_POINTS, 3), np.nan)
MEAN_FACE[:68] = [
    (-108, -74, 70), (-108, -27, 92), (-106, -4, 92), (-95, 45, 79), (-85, 65, 63), (-74, 79, 46), (-47, 100, 20),
    (-19, 112, 0), (0, 114, -2), (19, 112, 0), (47, 100, 20), (74, 79, 46), (85, 65, 63), (95, 45, 79),
    (106, -4, 92), (108, -27, 92), (108, -74, 70), (-96, -88, 29), (-78, -91, -2), (-63, -96, -12),
    (-44, -96, -22), (-22, -93, -27), (22, -93, -27), (44, -96, -22), (63, -96, -12), (78, -91, -2), (96, -88, 29),
    (0, -65, -26), (0, -40, -42), (0, -19, -59), (0, -5, -64), (-19, 11, -31), (-11, 17, -34), (0, 17, -37),
    (11, 17, -34), (19, 11, -31), (-71, -59, 9), (-61, -67, -1), (-44, -68, -3), (-27, -56, -1), (-41, -54, -3),
    (-57, -53, 0), (27, -56, -1), (44, -68, -3), (61, -67, -1), (71, -59, 9), (57, -53, 0), (41, -54, -3),
    (-37, 49, -7), (-22, 39, -30), (-11, 37, -36), (0, 38, -37), (11, 37, -36), (22, 39, -30), (37, 49, -7),
    (20, 61, -24), (11, 64, -28), (0, 65, -29), (-11, 64, -28), (-20, 61, -24), (-32, 48, -10), (-8, 48, -27),
    (0, 48, -29), (8, 48, -27), (32, 48, -10), (9, 50, -26), (0, 50, -27), (-9, 50, -26),
]  # fmt: skip
IRIS = np.array([(0, 0, 0), (9, 0, 0), (0, -9, 0), (-9, 0, 0), (0, 9, 0)])
MEAN_FACE[RIGHT_IRIS] = MEAN_FACE[RIGHT_EYE].mean(axis=0) + IRIS
MEAN_FACE[LEFT_IRIS] = MEAN_FACE[LEFT_EYE].mean(axis=0) + IRIS

UNITS_BETWEEN_EYES = 100

RIGID_MEAN = MEAN_FACE[RIGID].mean(axis=0)
RIGID_INVERSE = np.linalg.pinv(MEAN_FACE[RIGID] - RIGID_MEAN)  # 3 x 21


@dataclass(frozen=True, eq=False)
class Pose:
    """A head seen from afar (weak perspective).

    Args:
        rotation: 3 x 3, takes the upright face that looks at the viewer to the face as seen.
        scale: Pixels per unit of the mean face.
        centre: 2, x then y, pixels: where the mean face's origin, a point within the head, is seen.
    """

    rotation: np.ndarray
    scale: float
    centre: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray) -> "Pose":
        """The pose of the face with these points (78 x 2, pixels)."""
        middle = points[RIGID].mean(axis=0)
        affine = (RIGID_INVERSE @ (points[RIGID] - middle)).T  # 2 x 3
        pose = cls.nearest(affine, middle)
        return replace(pose, centre=2 * middle - pose.project(RIGID_MEAN))

    @classmethod
    def nearest(cls, axes: np.ndarray, centre: np.ndarray) -> "Pose":
        """The pose whose scaled axes, the first two rows of its rotation, are nearest to these (2 x 3, pixels)."""
        left, sizes, right = np.linalg.svd(axes, full_matrices=False)
        rows = left @ right
        return cls(np.vstack([rows, np.cross(*rows)]), sizes.mean(), centre)

    def lift(self, points: np.ndarray) -> np.ndarray:
        """Points seen in this pose (78 x 2, pixels) on the upright face, in space (78 x 3), with the mean's depth."""
        seen = (points - self.centre) / self.scale
        depth = MEAN_FACE @ self.rotation[2]
        return np.column_stack([seen, depth]) @ self.rotation

    def project(self, upright: np.ndarray) -> np.ndarray:
        """Points of the upright face (78 x 3) as they are seen in this pose (78 x 2, pixels)."""
        return upright @ self.rotation[:2].T * self.scale + self.centre
