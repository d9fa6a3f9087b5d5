"""What a landmark detector is, and what it returns."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ..models.landmark_layout import FACE, face_extent


@dataclass(frozen=True, eq=False)
class Face:
    """One face in one picture.

    Args:
        points: 78 x 2 float32, x then y, pixels of the picture, ordered as in `fsth_hub.models.landmark_layout`; NaN
            where the detector knows no such point.
        score: How sure the detector is that this is a face, 0 to 1.
    """

    points: np.ndarray
    score: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the 68 face points, pixels of the picture."""
        face = self.points[FACE]
        return (*face.min(axis=0).tolist(), *face.max(axis=0).tolist())

    @property
    def size(self) -> float:
        """The larger side of the box, pixels."""
        return float(face_extent(self.points))

    def distance(self, other: "Face") -> float:
        """How far apart the middles of two faces lie, pixels."""
        return float(np.linalg.norm(self.points[FACE].mean(axis=0) - other.points[FACE].mean(axis=0)))


@runtime_checkable
class LandmarkDetector(Protocol):
    """Finds faces and their 78 landmarks. All threads that run a pipeline share its detector."""

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find every face of a picture.

        Args:
            image: H x W x 3 uint8, RGB.

        Returns:
            The faces, the largest first; an empty list where there is none.
        """
        ...

    def track(self, image: np.ndarray, previous: Face) -> Face | None:
        """Find the face of the last frame again, at little cost.

        Args:
            image: H x W x 3 uint8, RGB, the frame after the one of `previous`.
            previous: The face in the last frame.

        Returns:
            The face, or None where it is lost.
        """
        ...
