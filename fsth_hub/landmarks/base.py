"""What a landmark detector is, and what it returns."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Face:
    """One face in one picture.

    Args:
        points: 78 x 2 float32, x then y, pixels of the picture, ordered as in `fsth_hub.landmarks.layout`; NaN where
            the detector knows no such point.
        score: How sure the detector is that this is a face, 0 to 1.
        box: Left, top, right, bottom of the face points, pixels of the picture.
    """

    points: np.ndarray
    score: float
    box: tuple[float, float, float, float]


class LandmarkDetector(Protocol):
    """Finds faces and their 78 landmarks. A detector serves one thread at a time."""

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
