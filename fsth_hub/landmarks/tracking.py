"""One face followed through a clip, frame by frame."""

from collections.abc import Iterable, Iterator

import numpy as np

from ..models.errors import NoFaceError
from .base import Face, LandmarkDetector


def track_clip(frames: Iterable[np.ndarray], detector: LandmarkDetector, face_index: int = 0) -> Iterator[Face | None]:
    """Follow one face through a clip, holding one frame at a time.

    The detector looks for faces on the first frame and again only where the face was lost.

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
    last_seen = face = None
    for image in frames:
        if face is not None:
            face = detector.track(image, face)
        if face is None and (faces := detector.detect(image)):
            face = min(faces, key=last_seen.distance) if last_seen else _chosen(faces, face_index)
        if face is not None:
            last_seen = face
        yield face


def _chosen(faces: list[Face], face_index: int) -> Face:
    if face_index >= len(faces):
        raise NoFaceError(f"Face {face_index} (counted from 0) was asked for, but the clip begins with {len(faces)}.")
    return faces[face_index]
