"""The visible watermark of a generated frame."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont


WATERMARK = "AI-generated"


def add_watermark(frame: np.ndarray) -> np.ndarray:
    """
    Draw "AI-generated" into the lower right corner: the same for all frames of one size.

    Args:
        frame: height x width x 3 uint8 RGB.

    Returns:
        A copy with the watermark, whose size is in proportion to the shorter side.
    """
    kept, added, margin = _badge(*frame.shape[:2])
    marked = frame.copy()
    height, width = kept.shape[:2]
    bottom, right = frame.shape[0] - margin, frame.shape[1] - margin
    corner = marked[bottom - height : bottom, right - width : right]
    corner[:] = corner * kept + added
    return marked


@lru_cache(maxsize=8)
def _badge(height: int, width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """What share of a frame's corner stays and what is added to it (h x w x 1, in 0 to 255), and the margin."""
    unit = min(height, width) / 256
    font = ImageFont.load_default(max(1.0, 12 * unit))  # Pillow's own: nothing to ship
    box_width, box_height = round(font.getlength(WATERMARK) + 10 * unit), round(19 * unit)
    box_width, box_height = min(max(1, box_width), width), min(max(1, box_height), height)
    # Pillow's shapes have jagged edges: drawn four times as large.
    box = Image.new("L", (4 * box_width, 4 * box_height))
    ImageDraw.Draw(box).rounded_rectangle((0, 0, 4 * box_width - 1, 4 * box_height - 1), 20 * unit, fill=255)
    text = Image.new("L", (box_width, box_height))
    ImageDraw.Draw(text).text((box_width / 2, box_height / 2), WATERMARK, fill=255, font=font, anchor="mm")
    box, text = (np.asarray(part, np.float32)[..., None] / 255 for part in (box.reduce(4), text))
    # White on a black that lets 40 % through: readable on white, skin and black.
    margin = min(round(7 * unit), height - box_height, width - box_width)
    return (1 - 0.6 * box) * (1 - text), 255 * text, margin
