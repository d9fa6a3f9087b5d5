"""The square around a head that the networks see, fixed for a whole clip. Needs only NumPy and Pillow."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from .errors import FsthError, NoFaceError
from .landmark_layout import FACE, face_box


# The crop is 1.9 times the whole face, whose middle lies at 55 % of its height: hair and shoulders are in. The 68
# points leave out the forehead; in their measure the same square is this large and their middle lies this low.
CROP_SCALE = 2.27
FACE_HEIGHT = 0.59

# A strip beyond the border as narrow as this part of the crop's side repeats the edge, which nobody sees.
NARROW = 0.02
# Beyond that the picture is mirrored, but no deeper than this part of the crop's side (a whole mirrored face would be
# seen), and blurred by this part of the distance from the border, so that no line goes on as a streak.
MIRRORED, BLUR = 0.1, 0.4
BLUR_SIZE = 256  # side of the pictures that are blurred, pixels


class CropBox(NamedTuple):
    """A square of a picture, in its pixels, once that is turned by so many quarters to the left; it may reach beyond
    the picture's border."""

    left: float
    top: float
    side: float
    turn: int = 0


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
    """Cut a square out of a picture and resample it; beyond the border it is continued softly, without streaks.

    Args:
        image: H x W x 3 uint8.
        box: The square, pixels of the picture.
        size: Side of the result in pixels.

    Returns:
        size x size x 3 uint8.
    """
    crop = crop_repeating_edges(image, box, size)
    height, width = np.rot90(image, box.turn).shape[:2]
    if not reaches_outside(box, width, height):
        return crop
    scale = size / box.side
    # the pixels that show nothing but the picture
    columns, rows = (
        (max(0, int(np.ceil(-start * scale))), min(size, int(np.floor((length - start) * scale))))
        for start, length in ((box.left, width), (box.top, height))
    )
    if columns[0] >= columns[1] or rows[0] >= rows[1]:
        return crop
    return _continue(crop, columns, rows)


def crop_repeating_edges(image: np.ndarray, box: CropBox, size: int) -> np.ndarray:
    """The same, but beyond the border the edge is repeated; also of one channel, H x W."""
    image = np.rot90(image, box.turn)
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


def reaches_outside(box: CropBox, width: int, height: int) -> bool:
    """Whether so much of a square lies beyond the border of its picture (pixels, turned upright) that it is seen."""
    beyond = max(-box.left, -box.top, box.left + box.side - width, box.top + box.side - height)
    return beyond > NARROW * box.side


def share_outside(box: CropBox, width: int, height: int) -> float:
    """How much of a square lies beyond the border of its picture (pixels, turned upright), 0 to 1."""
    inside = 1.0
    for start, length in ((box.left, width), (box.top, height)):
        inside *= max(0.0, min(start + box.side, length) - max(start, 0.0)) / box.side
    return 1 - inside


def _continue(crop: np.ndarray, columns: tuple[int, int], rows: tuple[int, int]) -> np.ndarray:
    """Fill a crop (S x S x 3 uint8) beyond the columns and rows (first, end) that it has of the picture."""
    size = len(crop)
    deepest = MIRRORED * size

    def mirror(first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """For each pixel along an axis how far outside it lies, and which one it mirrors."""
        place = np.arange(size)
        distance = np.maximum(np.maximum(first - place, place - end + 1), 0)
        depth = np.round(deepest * (1 - np.exp(-distance / deepest))).astype(int)
        return distance, np.where(place < first, first + depth, np.where(place < end, place, end - 1 - depth))

    (across, x), (down, y) = mirror(*columns), mirror(*rows)
    x, y = x.clip(columns[0], columns[1] - 1), y.clip(rows[0], rows[1] - 1)
    mirrored = crop[y][:, x]
    # Blurred by 1, 2, 4, ... pixels of a small picture; in between it is interpolated.
    radius = BLUR * np.hypot(across, down[:, None]) * min(1.0, BLUR_SIZE / size)
    levels = np.where(radius < 1, radius, 1 + np.log2(np.maximum(radius, 1)))[..., None].astype(np.float32)
    filled = np.maximum(1 - levels, 0) * mirrored
    small = Image.fromarray(mirrored)
    if size > BLUR_SIZE:
        small = small.resize((BLUR_SIZE, BLUR_SIZE), Image.Resampling.BICUBIC)
    for level in range(1, int(np.ceil(levels.max())) + 1):
        blurred = small.filter(ImageFilter.GaussianBlur(2 ** (level - 1))).resize((size, size))
        filled += np.maximum(1 - np.abs(levels - level), 0) * np.asarray(blurred)
    result = np.rint(filled).astype(np.uint8)
    known = slice(*rows), slice(*columns)
    result[known] = crop[known]
    return result


def to_crop(points: np.ndarray, box: CropBox, size: int) -> np.ndarray:
    """Points of the picture (... x 2, pixels) in pixels of its crop of side `size`, float32."""
    return ((points - np.array([box.left, box.top])) * (size / box.side)).astype(np.float32)
