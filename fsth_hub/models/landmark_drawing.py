"""Landmarks as the picture that the networks see. Needs only NumPy and Pillow."""

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .landmark_layout import (
    INNER_LIPS,
    JAW,
    LEFT_BROW,
    LEFT_EYE,
    LEFT_IRIS,
    NOSE_BASE,
    NOSE_BRIDGE,
    OUTER_LIPS,
    RIGHT_BROW,
    RIGHT_EYE,
    RIGHT_IRIS,
)


# Points, RGB colour, closed. Colours are those of the paper's authors, who leave the inner lips out; here they
# have a colour of their own, so that a narrow opening of the mouth does not melt into the outer lips.
LINES = (
    (JAW, (255, 255, 255), False),
    (RIGHT_BROW, (255, 0, 0), False),
    (LEFT_BROW, (0, 255, 0), False),
    (NOSE_BRIDGE, (0, 0, 255), False),
    (NOSE_BASE, (0, 0, 255), False),
    (RIGHT_EYE, (255, 0, 255), True),
    (LEFT_EYE, (0, 255, 255), True),
    (OUTER_LIPS, (255, 255, 0), True),
    (INNER_LIPS, (255, 128, 0), True),
)
# Eye, iris, colour: the complement of the lids' colour, for at 128 pixels the lids almost fill the eye.
IRISES = ((RIGHT_EYE, RIGHT_IRIS, (0, 255, 0)), (LEFT_EYE, LEFT_IRIS, (255, 0, 0)))

LINE_WIDTH = 2 / 256  # of the drawing's side
SUPERSAMPLING = 4  # the lines of a face that moves by less than a pixel must move too


def rasterize_landmarks(points: np.ndarray, size: int) -> np.ndarray:
    """Rasterize landmarks as coloured lines on black (paper, section 3).

    Args:
        points: 78 x 2, x then y, pixels of the drawing; what is NaN is left out.
        size: Side of the drawing in pixels.

    Returns:
        size x size x 3 uint8, RGB.
    """
    canvas = Image.new("RGB", (size * SUPERSAMPLING, size * SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(LINE_WIDTH * size * SUPERSAMPLING))
    # Pillow counts from the middle of the first pixel, we from its corner; it would cut fractions off, not round them.
    points = np.rint(np.asarray(points, np.float64) * SUPERSAMPLING - 0.5)
    for indices, colour, closed in LINES:
        line = points[indices]
        line = line[np.isfinite(line).all(axis=1)]
        if closed:
            line = np.concatenate([line, line[:1]])
        if len(line) > 1:
            draw.line(line.ravel().tolist(), fill=colour, width=width, joint="curve")
    for eye, iris, colour in IRISES:
        if np.isfinite(points[eye]).all() and np.isfinite(points[iris]).all():
            _rasterize_iris(canvas, points[eye], points[iris], colour)
    return np.asarray(canvas.reduce(SUPERSAMPLING))


def _rasterize_iris(canvas: Image.Image, eye: np.ndarray, iris: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Rasterize a disc, but only what the lids leave open of it: a closed eye shows no iris."""
    # no more than the canvas shows of it: an eye of a damaged file may be as wide as a house
    corner = np.maximum(np.floor(eye.min(axis=0)), 0).astype(int)
    size = (np.minimum(np.ceil(eye.max(axis=0)) + 1, canvas.size).astype(int) - corner).tolist()
    if min(size) < 1:
        return
    opening, disc = Image.new("1", size), Image.new("1", size)
    ImageDraw.Draw(opening).polygon((eye - corner).ravel().tolist(), fill=1)
    radius = np.linalg.norm(iris[1:] - iris[0], axis=1).mean()
    ImageDraw.Draw(disc).circle((iris[0] - corner).tolist(), radius, fill=1)
    canvas.paste(colour, tuple(corner.tolist()), ImageChops.logical_and(opening, disc))
