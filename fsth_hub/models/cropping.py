"""The square around a head that the networks see, fixed for a whole clip. Needs only NumPy and Pillow."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from .errors import FsthError, NoFaceError
from .landmark_layout import FACE, face_box


# The crop is 1.9 times the whole face, whose middle lies at 55 % of its height: hair and shoulders are in. The 68
# points leave out the forehead; in their measure the same square is this large and their middle lies this low.
CROP_SCALE = 2.27
FACE_HEIGHT = 0.59


class CropBox(NamedTuple):
    """A square of a picture, in its pixels; it may reach beyond the picture's border."""

    left: float
    top: float
    side: float


def crop_box(points: np.ndarray) -> CropBox:
    """The crop that fits a face, or one face all through a clip (a crop that followed the face would shake).

    Args:
        points: 78 x 2, or N x 78 x 2 for the frames of a clip; x then y, pixels. A frame without a face is NaN.

    Returns:
        The square, around the median place of the face, 2.27 times the median size of its 68 points.

    Raises:
        NoFaceError: No frame has a face.
    """
    points = np.asarray(points, np.float64).reshape(-1, *np.shape(points)[-2:])
    points = points[np.isfinite(points[:, FACE]).all(axis=(1, 2))]
    if not len(points):
        raise NoFaceError("There is no face to crop to; use a picture or a clip that shows one.")
    centres, sizes = face_box(points)  # N x 2, N x 2
    x, y = np.median(centres, axis=0)
    side = CROP_SCALE * np.median(sizes.max(axis=1))
    return CropBox(float(x - side / 2), float(y - FACE_HEIGHT * side), float(side))


def whole_frame(width: int, height: int, name: str) -> CropBox:
    """The box of a picture or clip (pixels) that is a square head crop already; `name` is for the `FsthError`."""
    if width != height:
        raise FsthError(f"{name} is {width} x {height}; without cropping it must be a square crop of the head.")
    return CropBox(0, 0, width)


def crop_image(image: np.ndarray, box: CropBox, size: int) -> np.ndarray:
    """Cut a square out of a picture and resample it; beyond the border the edge is repeated.

    Args:
        image: H x W x 3 uint8.
        box: The square, pixels of the picture.
        size: Side of the result in pixels.

    Returns:
        size x size x 3 uint8.
    """
    height, width = image.shape[:2]
    # One pixel more on every side, for the resampling filter.
    left, top = int(np.floor(box.left)) - 1, int(np.floor(box.top)) - 1
    count = int(np.ceil(box.side)) + 3
    rows = np.clip(np.arange(top, top + count), 0, height - 1)
    columns = np.clip(np.arange(left, left + count), 0, width - 1)
    patch = Image.fromarray(image.take(rows, axis=0).take(columns, axis=1))
    x, y = box.left - left, box.top - top
    square = (x, y, x + box.side, y + box.side)
    return np.asarray(patch.resize((size, size), Image.Resampling.BICUBIC, box=square))


def to_crop(points: np.ndarray, box: CropBox, size: int) -> np.ndarray:
    """Points of the picture (... x 2, pixels) in pixels of its crop of side `size`, float32."""
    return ((points - np.array([box.left, box.top])) * (size / box.side)).astype(np.float32)
