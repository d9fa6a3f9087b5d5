"""Crops of a mouth or an eye that are aligned to the line between the eyes, as the facial components see them.

A crop's normalized coordinates run from -1 to 1 over its square; its alignment (B x 2 x 3) maps them to those of the
frame, as `F.affine_grid` takes it. The left eye is mirrored, so that one network knows both.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F

from .landmark_flow import pixel_grid
from .landmark_layout import FLIP, LEFT_EYE, OUTER_LIPS, RIGHT_EYE, RIGHT_IRIS
from .openings import EYES, MOUTH, Opening
from .rims import OUTER_MOUTH, along, with_rim_points


BLEND_FROM, BLEND_TO = 0.7, 0.95  # where a component's share of the picture falls from 1 to 0, half sides of the crop


@dataclass(frozen=True)
class Part:
    """A part of the face with an aligned crop of its own.

    Args:
        network (`str`): which network generates it, `"mouth"` or `"eye"`.
        side (`float`): of the square, in distances between the eyes.
        centre (`tuple[int]`): the points whose mean is its centre.
        mirrored (`bool`): whether the crop shows the part mirrored.
    """

    network: str
    side: float
    centre: tuple[int, ...]
    mirrored: bool = False


PARTS = {
    "mouth": Part("mouth", 1.3, tuple(OUTER_LIPS)),
    "right_eye": Part("eye", 0.75, tuple(RIGHT_EYE)),
    "left_eye": Part("eye", 0.75, tuple(LEFT_EYE), mirrored=True),
}


def align(landmarks: torch.Tensor, part: Part, frame_size: int) -> torch.Tensor:
    """
    Where in frames the crops of a part lie.

    Args:
        landmarks (`torch.Tensor` of shape `(batch, 78, 2)`): pixels.
        frame_size (`int`): side of the frames in pixels.

    Returns:
        `torch.Tensor` of shape `(batch, 2, 3)`: float32, from a crop's normalized coordinates to its frame's.
    """
    landmarks = landmarks.float() * 2 / frame_size - 1
    right = landmarks[:, LEFT_EYE].mean(dim=1) - landmarks[:, RIGHT_EYE].mean(dim=1)  # B x 2, the picture's right
    down = torch.stack([-right[:, 1], right[:, 0]], dim=1)
    axes = torch.stack([-right if part.mirrored else right, down], dim=2) * part.side / 2  # B x 2 x 2
    centre = landmarks[:, list(part.centre)].mean(dim=1)
    return torch.cat([axes, centre[:, :, None]], dim=2)


def invert(alignment: torch.Tensor) -> torch.Tensor:
    """From a frame's normalized coordinates to its crop's; B x 2 x 3."""
    inverse = torch.linalg.inv(alignment[:, :, :2])
    return torch.cat([inverse, -inverse @ alignment[:, :, 2:]], dim=2)


def to_aligned(landmarks: torch.Tensor, alignment: torch.Tensor, part: Part, frame_size: int) -> torch.Tensor:
    """Landmarks (B x 78 x 2, pixels of the frame) in normalized coordinates of the crop, named as they look there."""
    inverse = invert(alignment)
    points = (landmarks.float() * 2 / frame_size - 1) @ inverse[:, :, :2].mT + inverse[:, None, :, 2]
    return points[:, FLIP.copy()] if part.mirrored else points


def sample_crops(images: torch.Tensor, alignment: torch.Tensor, size: int) -> torch.Tensor:
    """
    The crops of frames, bicubic, differentiably.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): square frames in [-1, 1].
        alignment (`torch.Tensor` of shape `(batch, 2, 3)`): of [`align`].
        size (`int`): side of the crops in pixels.

    Returns:
        `torch.Tensor` of shape `(batch, 3, size, size)`: float32; beyond the frame its border is repeated.
    """
    # sampled several times a pixel where the frame is finer, which would alias; each frame as if it were alone
    pixels = alignment[:, :, 0].norm(dim=1) * images.shape[-1] / size  # B
    factors = [max(1, ceil(count - 0.5)) for count in pixels.tolist()]
    crops, first = [], 0
    for factor, alike in groupby(factors):
        frames = slice(first, first := first + len(list(alike)))
        own = alignment[frames]
        grid = F.affine_grid(own, [len(own), 3, factor * size, factor * size], align_corners=False)
        finer = F.grid_sample(images[frames].float(), grid, "bicubic", padding_mode="border", align_corners=False)
        crops.append(F.avg_pool2d(finer, factor).clamp(-1, 1))
    return torch.cat(crops)


def part_masks(points: torch.Tensor, part: Part, size: int) -> torch.Tensor:
    """
    What of a crop is opening, and what is lips or iris.

    Args:
        points (`torch.Tensor` of shape `(batch, 78, 2)`): of [`to_aligned`]; irises may be NaN.
        size (`int`): side of the crop in pixels.

    Returns:
        `torch.Tensor` of shape `(batch, 2, size, size)`: inner mouth and mouth with lips, or between the lids and
        iris, 0 to 1, with edges of a pixel.
    """
    points = (points + 1) * size / 2
    rims = (MOUTH, tuple(map(along, OUTER_MOUTH))) if part.network == "mouth" else (EYES[0],)
    with_rims = with_rim_points(points)
    masks = [coverage(Opening(with_rims[:, pair]), size) for pair in rims]
    if part.network == "eye":
        centre, ring = points[:, RIGHT_IRIS[0], None], points[:, RIGHT_IRIS[1:]]
        radius = (ring - centre).norm(dim=-1).mean(dim=1, keepdim=True)  # B x 1
        places = (pixel_grid(size, size, points.device).reshape(1, -1, 2) + 1) * size / 2  # 1 x ss x 2
        iris = (radius - (places - centre).norm(dim=-1) + 0.5).clamp(0, 1).nan_to_num()
        masks.append(iris * masks[0])
    return torch.stack(masks, dim=1).unflatten(2, (size, size))


def coverage(opening: Opening, size: int) -> torch.Tensor:
    """How much of each pixel of a picture lies between the rims: B x size * size."""
    pixels, own = opening.pixels(size)  # B x n x 2, B x n
    x, y = opening.to_local(pixels + 0.5).unbind(dim=-1)
    upper, lower = opening.rims(x)
    width = opening.width[..., 0]  # B x 1, pixels
    above, below = ((edge * width + 0.5).clamp(0, 1) for edge in (y - upper, lower - y))
    sides = (x * width + 0.5).clamp(0, 1) * ((1 - x) * width + 0.5).clamp(0, 1)
    covered = (above + below - 1).clamp(0, 1) * sides * own  # B x n
    cells = pixels[..., 1] * size + pixels[..., 0]
    return covered.new_zeros(len(pixels), size * size).scatter_reduce(1, cells, covered, "amax")


@lru_cache(maxsize=8)
def blend_mask(size: int, device="cpu") -> torch.Tensor:
    """How much of a crop's pixels a component decides, size x size: 1 within, falling to 0 before the border. It is
    kept, and not to be changed."""
    reach = pixel_grid(size, size, device).pow(4).sum(dim=-1) ** 0.25
    share = ((BLEND_TO - reach) / (BLEND_TO - BLEND_FROM)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def similarity(points: torch.Tensor, others: torch.Tensor, part: Part) -> torch.Tensor:
    """
    How alike a part looks in shape: 0 for equal ones, the lower the less.

    Args:
        points, others (`torch.Tensor` of shape `(..., 78, 2)`): of [`to_aligned`].
    """
    shown = np.r_[48:68] if part.network == "mouth" else np.r_[RIGHT_EYE, RIGHT_IRIS[:1]]
    return -(points - others)[..., shown, :].norm(dim=-1).nanmean(dim=-1)
