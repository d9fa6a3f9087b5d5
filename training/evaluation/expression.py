"""Whether eyes and mouth of generated frames do what the landmarks ask for, and how near they are to the truth's.

Landmarks are 78 x 2 pixels, each face in a frame of its own.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from fsth_hub.finetuning.feature_networks import crop_around
from fsth_hub.models.landmark_layout import EYES, FACE, LEFT_EYE, OUTER_LIPS, RIGHT_EYE, eye_opening, interocular


NUM_EXTREMES = 6  # frames with the most closed eyes, and as many with the most open mouth
MIN_FRAMES = 3
MIN_CLOSED, CLOSED_SHARE = 3, 0.15  # the frames that count as blinks
# Standard deviations of what is asked for below which a slope would be one of the detector's jitter.
MIN_DEVIATION = {"mouth": 0.02, "eyes": 0.01}

# Squares around a part: their sides in distances between the eyes, and in pixels once they are enlarged.
MOUTH_SIDE, EYE_SIDE = 1.3, 0.75
PART_SIZE = 128
CLOSE_UP_SIZE = 224  # pixels, of the face


def eye_openings(landmarks: np.ndarray) -> np.ndarray:
    """Distance between the lids over the width of the eye, mean of both eyes; ... x 78 x 2 to the leading shape."""
    return eye_opening(landmarks, EYES).mean(axis=-1)


def mouth_openings(landmarks: np.ndarray) -> np.ndarray:
    """Distance between the inner lips in distances between the eyes; ... x 78 x 2 to the leading shape."""
    return np.linalg.norm(landmarks[..., 62, :] - landmarks[..., 66, :], axis=-1) / interocular(landmarks)


OPENINGS = {"mouth": mouth_openings, "eyes": eye_openings}
EXPRESSION_KEYS = ("mouth_slope", "mouth_corr", "eyes_slope", "eyes_corr", "blink")


def extreme_frames(landmarks: np.ndarray) -> list[int]:
    """The frames with the most closed eyes and those with the most open mouth, in order; N x 78 x 2."""
    closed = np.argsort(eye_openings(landmarks), kind="stable")[:NUM_EXTREMES]
    opened = np.argsort(-mouth_openings(landmarks), kind="stable")[:NUM_EXTREMES]
    return np.union1d(closed, opened).tolist()


def delivered(asked: Sequence[np.ndarray], seen: Sequence[np.ndarray | None], rest: float) -> dict:
    """
    How much of an expression arrives: 1 is all of it, 0 none.

    Args:
        asked: landmarks that the frames were generated from.
        seen: those that a detector sees there; `None` where it sees no face, and the frame does not count.
        rest: opening of the eyes when they do not blink.

    Returns:
        `mouth_slope` and `eyes_slope` of the openings seen on those asked for (least squares), `mouth_corr` and
        `eyes_corr`, and `blink`, how far eyes close that are to close: in the frames where they are to close most, the
        way from rest to what is seen in parts of the way to what is asked. `None` where hardly anything is asked.
    """
    measured = dict.fromkeys(EXPRESSION_KEYS)
    pairs = [pair for pair in zip(asked, seen, strict=True) if pair[1] is not None]
    if len(pairs) < MIN_FRAMES:
        return measured
    for part, openings in OPENINGS.items():
        wanted, found = (openings(np.stack(points)).astype(float) for points in zip(*pairs, strict=True))
        if wanted.std() < MIN_DEVIATION[part]:
            continue
        covariance = np.cov(wanted, found, bias=True)
        measured[f"{part}_slope"] = float(covariance[0, 1] / covariance[0, 0])
        if covariance[1, 1] > 1e-12:  # the unmoved portrait has no correlation with anything
            measured[f"{part}_corr"] = float(np.corrcoef(wanted, found)[0, 1])
        if part == "eyes":
            closed = np.argsort(wanted, kind="stable")[: max(MIN_CLOSED, round(CLOSED_SHARE * len(wanted)))]
            way = rest - wanted[closed].mean()
            if way > MIN_DEVIATION["eyes"]:
                # of means, for a single frame that hardly closes would be divided by next to nothing
                measured["blink"] = float((rest - found[closed].mean()) / way)
    return measured


def close_up(images: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
    """The square of the 68 face points, enlarged: hair and background, most of a frame, would drown eyes and mouth."""
    return crop_around(images, landmarks[:, FACE], 1.0, CLOSE_UP_SIZE)  # N x 3 x 224 x 224


def mouths(images: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
    """The mouths of N x 3 x S x S, level and enlarged to N x 3 x 128 x 128; landmarks: N x 78 x 2."""
    return level_crop(images, landmarks, landmarks[:, OUTER_LIPS].mean(dim=1), MOUTH_SIDE)


def eyes(images: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
    """All right eyes and then all left ones, level and enlarged: 2N x 3 x 128 x 128."""
    crops = [level_crop(images, landmarks, landmarks[:, eye].mean(dim=1), EYE_SIDE) for eye in (RIGHT_EYE, LEFT_EYE)]
    return torch.cat(crops)


CROPS = {"face": close_up, "mouth": mouths, "eyes": eyes}  # what is compared by itself


def level_crop(images: torch.Tensor, landmarks: torch.Tensor, centre: torch.Tensor, side: float) -> torch.Tensor:
    """
    A square in which the line between the eyes is level.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, size, size)`): in [-1, 1].
        landmarks (`torch.Tensor` of shape `(batch, 78, 2)`): pixels.
        centre (`torch.Tensor` of shape `(batch, 2)`): of the square, pixels.
        side (`float`): of the square, in distances between the eyes.

    Returns:
        `torch.Tensor` of shape `(batch, 3, 128, 128)`: beyond the frame its border is repeated.
    """
    size = images.shape[-1]
    right = landmarks[:, LEFT_EYE].mean(dim=1) - landmarks[:, RIGHT_EYE].mean(dim=1)  # B x 2, the picture's right
    down = torch.stack([-right[:, 1], right[:, 0]], dim=1)
    # in half sides of the frame, as is the centre: half the square's side along either axis
    axes = torch.stack([right, down], dim=2) * side / size  # B x 2 x 2
    theta = torch.cat([axes, (centre * 2 / size - 1)[:, :, None]], dim=2).float()
    grid = F.affine_grid(theta, [len(images), 3, PART_SIZE, PART_SIZE], align_corners=False)
    crops = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return crops.clamp(-1, 1)
