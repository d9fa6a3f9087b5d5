"""Landmarks drawn over pictures and clips, for people to see whether they fit."""

from collections.abc import Iterable, Iterator
from itertools import tee

import numpy as np
from PIL import Image

from ..landmarks import LandmarkDetector, track_clip
from ..models.cropping import crop_box, to_crop
from ..models.errors import NoFaceError
from ..models.landmark_drawing import rasterize_landmarks


OPACITY = 0.75  # the eye's own iris must show through the drawn one
MAX_DRAWING = 1024  # pixels; landmarks are drawn four times as large and then reduced, which takes memory


def overlaid_clip(
    frames: Iterable[np.ndarray], detector: LandmarkDetector, face_index: int, name: str
) -> Iterator[np.ndarray]:
    """A clip's frames with the landmarks of one face drawn over them; where it is gone the frame is left as it is."""
    found = False
    frames, tracked = tee(frames)
    for image, face in zip(frames, track_clip(tracked, detector, face_index), strict=True):
        found = found or face is not None
        yield image if face is None else overlaid(image, face.points)
    if not found:
        raise NoFaceError(f"No face was found in {name}; use a clip in which the face is seen clearly.")


def overlaid(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A picture with landmarks drawn over it, in its own resolution.

    Args:
        image: H x W x 3 uint8.
        points: 78 x 2, pixels of the picture.

    Returns:
        H x W x 3 uint8.
    """
    box = crop_box(points)
    side = min(round(box.side), MAX_DRAWING)
    drawing = rasterize_landmarks(to_crop(points, box, side), side)
    size = (round(box.side), round(box.side))
    colours = Image.fromarray(drawing).resize(size)
    opacity = Image.fromarray((drawing.max(axis=2) * OPACITY).astype(np.uint8)).resize(size)
    picture = Image.fromarray(image)
    picture.paste(colours, (round(box.left), round(box.top)), opacity)
    return np.asarray(picture)
