"""Several faces followed through a clip at once, in one pass."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .base import Face, LandmarkDetector
from .tracking import FaceTracker, choose_face


Faces = Literal["all"] | Sequence[int]

SAME = 0.3  # of a face's size: nearer than this are not two faces
PASSER_BY = 1 / 3  # of the largest face: who is smaller is not one of "all"


class GroupTracker:
    """Follows several faces, a frame at a time, each as `FaceTracker` does, and never two trackers the same one.

    Args:
        detector: What finds the landmarks; it looks for faces once in a frame, however many are followed.
        faces: Their numbers, counted from 0, the largest, in the first frame that shows one; or "all" that are at
            least a third as large as the largest, from left to right.
    """

    def __init__(self, detector: LandmarkDetector, faces: Faces = "all"):
        self.faces, self.waited = faces, 0  # frames before the first that shows a face
        self.trackers: list[FaceTracker] = []
        self._shared = _OneFrame(detector)
        self._first = FaceTracker(self._shared)

    def __call__(self, image: np.ndarray) -> list[Face | None] | None:
        """Each face in the next frame (H x W x 3 uint8, RGB), None where it is gone; None until one is seen.

        Raises:
            NoFaceError: The first frame that shows a face shows too few.
        """
        self._shared.begin()
        if not self.trackers:
            if self._first(image) is None:
                self.waited += 1
                return None
            faces = self._shared.detect(image)
            numbers = large_faces(faces) if self.faces == "all" else self.faces
            self.trackers = [self._first.of(number, choose_face(faces, number)) for number in numbers]
            return [faces[number] for number in numbers]
        found = [tracker.face for tracker in self.trackers]  # a frame ago
        # those who were seen then come first: whoever comes back is one of the others
        for index in sorted(range(len(found)), key=lambda index: found[index] is None):
            self._shared.taken = [face for other, face in enumerate(found) if other != index and face is not None]
            found[index] = self.trackers[index](image)
        return found


def large_faces(faces: Sequence[Face]) -> list[int]:
    """The numbers of the faces, of which the first is the largest, that are no passers-by, from left to right."""
    large = [number for number, face in enumerate(faces) if face.size >= PASSER_BY * faces[0].size]
    return sorted(large, key=lambda number: sum(faces[number].box[::2]))


class _OneFrame:
    """A detector for several trackers: it looks for a frame's faces once, and shows none that is taken."""

    def __init__(self, detector: LandmarkDetector):
        self.detector = detector
        self.begin()

    def begin(self) -> None:
        """Another frame comes."""
        self.taken: list[Face] = []  # the others', in this frame or still in the last one
        self._found: dict[str, list[Face]] = {}

    def detect(self, image: np.ndarray) -> list[Face]:
        return self._look("detect", image)

    def glance(self, image: np.ndarray) -> list[Face]:
        return self._look("glance" if hasattr(self.detector, "glance") else "detect", image)

    def track(self, image: np.ndarray, previous: Face) -> Face | None:
        face = self.detector.track(image, previous)
        return None if face is None or self._is_taken(face) else face

    def _look(self, method: str, image: np.ndarray) -> list[Face]:
        if method not in self._found:
            self._found[method] = getattr(self.detector, method)(image)
        return [face for face in self._found[method] if not self._is_taken(face)]

    def _is_taken(self, face: Face) -> bool:
        return any(face.distance(other) < SAME * other.size for other in self.taken)
