"""One face followed through a clip, frame by frame, and from shot to shot."""

from collections.abc import Iterable, Iterator
from copy import copy

import cv2
import numpy as np

from ..models.errors import NoFaceError
from .base import Face, LandmarkDetector


THUMBNAIL = (32, 32)
CUT = 18.0  # grey levels by which a thumbnail changes on the mean, where another shot may begin
PAN, FARTHEST_PAN = 0.4, 4.0  # of that change: less is left of it when the camera moved, by pixels of the thumbnail
MOVED, GROWN = 0.15, 1.15  # sizes of the face, and their ratio, beyond which it is another shot's after such a change
JUMP, LEAP_IN_SIZE = 0.5, 1.2  # the same from one frame to the next without such a change: the mesh may have slipped
GONE = 10  # frames without a face after which it is looked for less often
GLANCE_EVERY, LOOK_EVERY = 5, 25  # frames: quickly, so that its return is seen within 0.2 s, and thoroughly


class FaceTracker:
    """Follows one face, a frame at a time, and notes where another shot begins.

    The detector looks for faces on the first frame and again only where the face was lost, where the picture changes
    at once, and where the landmarks jump.

    Args:
        detector: What finds the landmarks.
        face_index: As in `track_clip`.
    """

    def __init__(self, detector: LandmarkDetector, face_index: int = 0):
        self.detector, self.face_index = detector, face_index
        self.starts = [0]  # of the shots, in frames
        self._count = self._missing = 0
        self._face = self._last_seen = self._thumbnail = self._cut = None

    @property
    def shots(self) -> tuple[tuple[int, int], ...]:
        """First frame of each shot and the one after its last."""
        return tuple(zip(self.starts, [*self.starts[1:], self._count], strict=True))

    @property
    def face(self) -> Face | None:
        """The face in the last frame."""
        return self._face

    def of(self, face_index: int, face: Face) -> "FaceTracker":
        """A tracker that is as far in the clip as this one, and follows another face of the last frame."""
        other = copy(self)
        other.starts, other.face_index = [*self.starts], face_index
        other._face = other._last_seen = face
        return other

    def __call__(self, image: np.ndarray) -> Face | None:
        """The face in the next frame (H x W x 3 uint8, RGB), or None where it is gone."""
        thumbnail = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), THUMBNAIL, interpolation=cv2.INTER_AREA)
        thumbnail = thumbnail.astype(np.float32)
        if self._thumbnail is not None and _is_cut(self._thumbnail, thumbnail):
            self._cut, self._missing = self._count, 0
        self._thumbnail, before = thumbnail, self._face
        face = None
        if before is not None and self._cut != self._count:
            face = self.detector.track(image, before)
            if face is not None and _changed(before, face, JUMP, LEAP_IN_SIZE):
                face, self._cut = None, self._count
        if face is None:
            face = self._look(image)
        self._missing = 0 if face is not None else self._missing + 1
        if face is not None:
            if self._cut is not None and self._last_seen is not None and _changed(self._last_seen, face, MOVED, GROWN):
                self.starts.append(self._cut)
            self._cut, self._last_seen = None, face
        self._face = face
        self._count += 1
        return face

    def _look(self, image: np.ndarray) -> Face | None:
        if self._missing > GONE and self._missing % LOOK_EVERY:
            if self._missing % GLANCE_EVERY:
                return None
            faces = getattr(self.detector, "glance", self.detector.detect)(image)
        else:
            faces = self.detector.detect(image)
        if not faces:
            return None
        if self._last_seen is None:
            return choose_face(faces, self.face_index)
        if self._cut is not None:  # in another shot the place says little
            return min(faces[: 1 + self.face_index], key=self._last_seen.distance)
        return min(faces, key=self._last_seen.distance)


def track_clip(frames: Iterable[np.ndarray], detector: LandmarkDetector, face_index: int = 0) -> Iterator[Face | None]:
    """Follow one face through a clip, holding one frame at a time.

    Args:
        frames: The clip's frames in order, each H x W x 3 uint8, RGB.
        detector: What finds the landmarks.
        face_index: Which face to follow, counted from 0, the largest, in the first frame that shows one. When it is
            lost, the face nearest to where it was last seen is taken for the same.

    Returns:
        For each frame the face, or None where it is gone.

    Raises:
        NoFaceError: The first frame that shows a face shows too few for `face_index`.
    """
    return map(FaceTracker(detector, face_index), frames)


def _is_cut(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether one thumbnail (32 x 32 float32) does not follow on another, nor is the same picture moved a little."""
    change = cv2.absdiff(before, after).mean()
    if change <= CUT:
        return False
    window = cv2.createHanningWindow(THUMBNAIL, cv2.CV_32F)
    shift, _ = cv2.phaseCorrelate(before.copy(), after.copy(), window)  # which may lay the window over its arguments
    move = np.float32([[1, 0, shift[0]], [0, 1, shift[1]]])
    known = cv2.warpAffine(np.ones_like(before), move, THUMBNAIL) > 0.99
    if not known.any() or np.hypot(*shift) > FARTHEST_PAN:  # the same place, but elsewhere in the picture at once
        return True
    return cv2.absdiff(cv2.warpAffine(before, move, THUMBNAIL), after)[known].mean() > PAN * change


def _changed(before: Face, after: Face, moved: float, grown: float) -> bool:
    """Whether a face lies further than so many of its sizes away, or is larger or smaller by such a ratio."""
    ratio = (after.size + 1e-6) / (before.size + 1e-6)
    return before.distance(after) > moved * before.size or not 1 / grown < ratio < grown


def choose_face(faces: list[Face], face_index: int) -> Face:
    """One of the faces with which a clip begins; `NoFaceError` where there are too few."""
    if face_index >= len(faces):
        raise NoFaceError(f"Face {face_index} (counted from 0) was asked for, but the clip begins with {len(faces)}.")
    return faces[face_index]
