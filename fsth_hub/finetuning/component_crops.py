"""Aligned crops of mouths and eyes, and how the landmarks deform them: what facial components are taught with."""

import numpy as np
import torch
import torch.nn.functional as F

from ..models.aligned_crops import Part, align, sample_crops, to_aligned
from ..models.landmark_flow import face_flow, pixel_grid, resize_flow, smooth_flow
from ..models.landmark_layout import JAW
from ..models.lids import shut_lids
from ..models.source_skips import cavity_colours


MARGIN = 1.4  # what is kept over what a network sees, for what moves into it
EYE_DISTANCE = 0.19  # between the eyes, in sides of a frame, on average

# How a lower lip goes down with what belongs to it, and an upper one up; a lid with its brow. Points and shares.
LOWER_LIP = {65: 0.9, 66: 1, 67: 0.9, 55: 0.6, 56: 0.9, 57: 1, 58: 0.9, 59: 0.6}
LOWER_LIP |= dict(zip(JAW[4:13].tolist(), (0.2, 0.5, 0.8, 0.95, 1, 0.95, 0.8, 0.5, 0.2), strict=True))
UPPER_LIP = {61: 0.9, 62: 1, 63: 0.9, 50: 0.8, 51: 1, 52: 0.8}
UPPER_LID = {37: 1, 38: 1, 18: 0.1, 19: 0.1, 20: 0.1}
OPPOSITES = {"mouth": ((61, 67), (62, 66), (63, 65)), "eye": ((37, 41), (38, 40))}  # upper and lower
UPPER_LIP_SHARE = 0.1  # of a mouth's opening


def kept_size(size: int) -> int:
    """Side in pixels of what is kept of a crop that the network sees at `size` pixels."""
    return round(size * MARGIN / 2) * 2


def cut_crops(
    images: torch.Tensor, landmarks: torch.Tensor, part: Part, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The crops of a part with their margin, and where the landmarks lie in them.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): square pictures in [-1, 1].
        landmarks (`torch.Tensor` of shape `(batch, 78, 2)`): their pixels.
        size (`int`): side in pixels of what the network sees of a crop.

    Returns:
        `(batch, 3, P, P)` in [-1, 1], P being [`kept_size`], and `(batch, 78, 2)`, normalized coordinates of what the
        network sees.
    """
    alignment = align(landmarks, part, images.shape[-1])
    points = to_aligned(landmarks, alignment, part, images.shape[-1])
    alignment[:, :, :2] *= kept_size(size) / size
    return sample_crops(images, alignment, kept_size(size)), points


def centre_of(images: torch.Tensor, size: int) -> torch.Tensor:
    """What the network sees of kept crops: B x 3 x size x size."""
    start = (images.shape[-1] - size) // 2
    return images[..., start : start + size, start : start + size]


def warp_crops(
    images: torch.Tensor, driving: torch.Tensor, source: torch.Tensor, part: Part, network_size: int, whole=False
) -> torch.Tensor:
    """
    What the landmarks' flow makes of kept crops.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, P, P)`): of [`cut_crops`].
        driving, source (`torch.Tensor` of shape `(batch, 78, 2)`): normalized coordinates of what the network sees.
        network_size (`int`): side in pixels of that.
        whole (`bool`, *optional*, defaults to `False`): with the margin, P pixels wide, or what the network sees.
    """
    driving = shut_lids(driving, source)  # as in a frame, see `portrait_flow`
    margin = images.shape[-1] / network_size
    size, reach = (images.shape[-1], margin) if whole else (network_size, 1.0)
    enlarged, scale = size / 2 / reach, part.side * EYE_DISTANCE
    known = face_flow(driving * enlarged + size / 2, source * enlarged + size / 2, size)
    # the smooth flow has its widths in half sides of a frame, of which the crop is a part
    grid = pixel_grid(size // 4, size // 4, images.device) * reach * scale
    smooth = smooth_flow(driving * scale + 1, source * scale + 1, 2, grid) / (reach * scale)
    flow = torch.lerp(resize_flow(smooth, size, size), known.flow, known.exactness)
    places = (pixel_grid(size, size, images.device) + flow) * (reach / margin)
    warped = F.grid_sample(images, places, "bicubic", padding_mode="border", align_corners=False).clamp(-1, 1)
    shade = known.shade.permute(0, 3, 1, 2)
    pixels = (source / margin + 1) * images.shape[-1] / 2
    return shade * warped + (1 - shade) * cavity_colours(images[:, None], pixels[:, None])[:, 0]


def deform_crops(images, points, moved, part: Part, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept crops (B x 3 x P x P) with another expression, `moved` instead of `points` (B x 78 x 2), centred as every
    crop is, and their points."""
    deformed = warp_crops(images, moved, points, part, size, whole=True)
    shift = moved[:, list(part.centre)].mean(dim=1, keepdim=True)  # B x 1 x 2
    return translate(deformed, shift[:, 0] * size / images.shape[-1]), moved - shift


def translate(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Pictures (B x 3 x P x P) seen from `shift` (B x 2, normalized coordinates)."""
    theta = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, "bicubic", padding_mode="border", align_corners=False).clamp(-1, 1)


def part_openings(points: np.ndarray, part: Part) -> np.ndarray:
    """How far a part is open (N), in half sides of its crop: between the inner lips, or between the lids."""

    def distance(a, b):
        return np.linalg.norm(points[:, a] - points[:, b], axis=-1)

    if part.network == "mouth":
        return distance(62, 66)
    return (distance(37, 41) + distance(38, 40)) / 2


def open_part(points: torch.Tensor, opening: torch.Tensor, part: Part) -> torch.Tensor:
    """
    Landmarks with lips or lids that are open another way, made up: a jaw goes down, or an upper lid.

    Args:
        points (`torch.Tensor` of shape `(batch, 78, 2)`): normalized coordinates of the crop.
        opening (`torch.Tensor` of shape `(batch,)`): how far, as [`part_openings`] measures; 0 is shut.
    """
    now = torch.from_numpy(part_openings(points.cpu().numpy(), part)).to(points)
    change, moved = (opening.to(points) - now)[:, None], points.clone()  # B x 1
    mouth = part.network == "mouth"
    upper_share = UPPER_LIP_SHARE if mouth else 1.0
    groups = [(UPPER_LIP if mouth else UPPER_LID, -upper_share)] + [(LOWER_LIP, 1 - upper_share)] * mouth
    for shares, direction in groups:
        weights = torch.tensor(list(shares.values())).to(points)
        moved[:, list(shares), 1] += direction * change * weights
    for upper, lower in OPPOSITES[part.network]:  # no lip or lid goes through the other
        moved[:, upper, 1] = torch.minimum(moved[:, upper, 1], moved[:, lower, 1])
    return moved
