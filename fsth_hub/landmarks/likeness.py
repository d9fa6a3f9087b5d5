"""Do portraits show one person? By what the embedder sees and by the proportions of the faces, together: either alone
takes other light or another pose for another person."""

import warnings

import numpy as np

from ..models.errors import FsthWarning
from ..models.landmark_layout import JAW, LEFT_EYE, NOSE_BASE, NOSE_BRIDGE, RIGHT_EYE
from .pose import UNITS_BETWEEN_EYES, Pose


NOSE = np.r_[NOSE_BRIDGE, NOSE_BASE]
# What neither expression nor gaze moves.
STEADY = np.r_[JAW, NOSE, RIGHT_EYE[[0, 3]], LEFT_EYE[[0, 3]]]
# Distances from the other portraits above which it is somebody else: of embeddings in lengths of theirs, of faces in
# distances between the eyes. See training/LOG.md.
OTHER_EMBEDDING, OTHER_FACE = 0.15, 0.08


def warn_of_strangers(embeddings: np.ndarray, landmarks: np.ndarray) -> None:
    """Warn if a portrait seems to show somebody else than the others.

    Args:
        embeddings: T x N, of the embedder.
        landmarks: T x 78 x 2, pixels.
    """
    count = len(embeddings)
    if count < 2:
        return
    embeddings = np.asarray(embeddings, np.float64)
    faces = np.stack([proportions(points) for points in np.asarray(landmarks, np.float64)])  # T x n x 2
    unlike = np.zeros(count)
    for number in range(count):
        others = np.delete(np.arange(count), number)
        mean = embeddings[others].mean(axis=0)
        seen = np.linalg.norm(embeddings[number] - mean) / np.linalg.norm(mean)
        shaped = np.sqrt(np.square(faces[number] - np.median(faces[others], axis=0)).sum(axis=1).mean())
        if seen > OTHER_EMBEDDING and shaped > OTHER_FACE:  # false where one is NaN
            unlike[number] = seen * shaped
    if not unlike.any():
        return
    # of two, neither is the odd one
    stranger, others = (2, "portrait 1") if count == 2 else (unlike.argmax() + 1, "the other portraits")
    warnings.warn(
        f"Portrait {stranger} seems to show another person than {others}, and the result would mix them; give "
        "portraits of one person.",
        FsthWarning,
        stacklevel=3,
    )


def proportions(points: np.ndarray) -> np.ndarray:
    """A face (78 x 2, pixels) as it is from the front: its steady points, n x 2, in distances between the eyes."""
    face = Pose.of(points).lift(points)[:, :2] / UNITS_BETWEEN_EYES
    eyes = face[LEFT_EYE].mean(axis=0) - face[RIGHT_EYE].mean(axis=0)
    return (face[STEADY] - face[NOSE].mean(axis=0)) / np.linalg.norm(eyes)
