"""Pictures that lie or stand on their head, and do not say so."""

from typing import NamedTuple

import numpy as np

from .base import Face, LandmarkDetector


# Score from which a face is taken for upright without trying the other turns; see training/LOG.md.
SURE = 0.9


class Upright(NamedTuple):
    """A picture whose faces stand upright.

    Args:
        image: H x W x 3 uint8, the picture after so many quarter turns to the left.
        faces: Its faces, the largest first.
        turn: 0 to 3.
    """

    image: np.ndarray
    faces: list[Face]
    turn: int


def set_upright(image: np.ndarray, detector: LandmarkDetector) -> Upright:
    """
    Find the faces of a picture (H x W x 3 uint8, RGB), however it lies: where none is sure, all four turns are tried,
    and that one is taken in which a face is surest.
    """
    best = Upright(image, detector.detect(image), 0)
    for turn in (1, 3, 2):
        if turn == 1 and _surest(best.faces) >= SURE:
            break
        turned = np.ascontiguousarray(np.rot90(image, turn))
        faces = detector.detect(turned)
        if _surest(faces) > _surest(best.faces):
            best = Upright(turned, faces, turn)
    return best


def _surest(faces: list[Face]) -> float:
    return max((face.score for face in faces), default=0.0)
