"""Which frames of a clip serve as portraits: those that show the face clearly, evenly over the clip.

Nothing is kept of a frame but a `Look` at it, so that a clip may be of any length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..models.landmark_layout import (
    FACE,
    INNER_LIPS,
    LEFT_EYE,
    OUTER_LIPS,
    RIGHT_EYE,
    face_extent,
    interocular,
)
from .pose import Pose


DEFAULT_SHOTS, MAX_SHOTS = 8, 64  # portraits of a clip

PATCH = 128  # side of the picture of the face that sharpness is measured in, pixels
BLURRED = 0.5  # of the sharpness that a tenth of the frames exceed: below it a frame is blurred
SMALL = 64  # pixels: the size of a face below which it shows little
QUICK = 0.05  # distances between the eyes from one frame to the next: what is faster is smeared
DARK, BRIGHT = 0.6, 1.5  # of the median brightness: fades and flashes. Relative, since skins and rooms differ.

MOUTH_OPEN = 0.12  # of the mouth's width between the lips, from which teeth may be seen
EYES_SHUT = 0.4  # of the median opening of the eyes
AWAKE = 0.8  # of the same: what a portrait has that is there for its place and pose
ALIKE = 0.7  # of the widest opening: a mouth that is open already
# Of so many portraits one may be there for its mouth, and one for its lids: of eight, shut eyes cost more than they
# gave (training/LOG.md).
SHOTS_WITH_MOUTH, SHOTS_WITH_LIDS = 4, 16

# What makes the first portrait worse by 1: a turn (sine), eyes less open and lips otherwise open than on the median
# (of their width), and sharpness lost (all of it).
FRONTAL, EYES, LIPS, SHARP = 0.15, 0.05, 0.1, 1.0

FIRST = "from the front with open eyes"
WIDE_MOUTH, SHUT_EYES = "widest open mouth", "shut eyes"
EVEN = "evenly over the clip"


@dataclass(frozen=True, eq=False)
class Look:
    """What is known of a frame.

    Args:
        points: 78 x 2, pixels.
        time: When it is shown, s.
        sharpness: Variance of the Laplacian within the face, which is brought to one size before.
        brightness: Mean within the face, 0 to 255.
        whole: Whether all of the face lies within the picture.
        movement: How far the points moved since the frame before, distances between the eyes; 0 where unknown.
    """

    points: np.ndarray
    time: float
    sharpness: float
    brightness: float
    whole: bool
    movement: float = 0.0

    @classmethod
    def at(cls, image: np.ndarray, points: np.ndarray, time: float, before: np.ndarray | None = None) -> "Look":
        """Look at a frame (H x W x 3 uint8, RGB) with these points, and those of the frame before."""
        face, (height, width) = points[FACE], image.shape[:2]
        low = np.clip(np.floor(face.min(axis=0)), 0, [width - 1, height - 1]).astype(int)
        high = np.clip(np.ceil(face.max(axis=0)), low + 1, [width, height]).astype(int)
        scale = PATCH / max(face_extent(points), 1.0)
        size = np.maximum(np.rint(scale * (high - low)), 1).astype(int)
        # the average of all pixels, so that a large face and its noise are not sharper for being large
        means = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        patch = cv2.resize(image[low[1] : high[1], low[0] : high[0]], size, interpolation=means)
        grey = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY)
        hull = cv2.convexHull(np.rint(scale * (face - low)).astype(np.int32))
        mask = cv2.erode(cv2.fillConvexPoly(np.zeros_like(grey), hull, 1), np.ones((5, 5), np.uint8)) > 0
        if not mask.any():  # hardly anything of the face lies within the picture
            return cls(points, time, 0.0, 0.0, False)
        return cls(
            points=points,
            time=time,
            sharpness=float(cv2.Laplacian(grey, cv2.CV_32F)[mask].var()),
            brightness=float(grey[mask].mean()),
            whole=bool((face >= 0).all() and (face <= (width, height)).all()),
            movement=0.0 if before is None else movement(before, points),
        )


@dataclass(frozen=True)
class Pick:
    """One of the frames that were picked: its number among the looks, and why."""

    index: int
    why: str


def movement(before: np.ndarray, after: np.ndarray) -> float:
    """How far a face (78 x 2, pixels) has moved on the mean, in distances between the eyes."""
    return float(np.linalg.norm(after[FACE] - before[FACE], axis=1).mean() / max(interocular(after), 1e-6))


def clear_frames(looks: Sequence[Look]) -> np.ndarray:
    """
    The numbers of the frames that show the face clearly: whole, large enough, in usual light, still and sharp. What
    none of them has is not asked for, so that there is always one.
    """
    sizes = np.array([face_extent(look.points) for look in looks])
    light, movements, sharpness = (
        np.array([getattr(look, name) for look in looks]) for name in ("brightness", "movement", "sharpness")
    )
    usual = np.median(light)
    demands = (
        np.array([look.whole for look in looks]),
        sizes >= min(SMALL, 0.8 * sizes.max()),
        (light >= DARK * usual) & (light <= BRIGHT * usual),
        movements <= max(QUICK, 1.1 * np.median(movements)),
        sharpness >= BLURRED * np.percentile(sharpness, 90),
    )
    clear = np.ones(len(looks), bool)
    for demand in demands:
        clear = clear & demand if (clear & demand).any() else clear
    return np.flatnonzero(clear)


def pick_frames(looks: Sequence[Look], shots: int) -> list[Pick]:
    """
    Pick frames that together are the person's portraits: clear ones with open eyes, evenly over the clip.

    Some stand in the place of their neighbours in time: the first, what motion is counted from, which is frontal, its
    eyes open, its lips as they mostly are; where no other mouth is as open, the widest open one; of many, shut eyes.

    Args:
        looks: At frames of one shot, in the order of time; at least one.
        shots: How many frames to pick; fewer are, where fewer are clear.
    """
    clear = clear_frames(looks)
    faces = np.array([_describe(look.points) for look in looks])  # N x 5
    eyes, mouth = faces[:, 3], faces[:, 4]
    middle = np.median(faces[clear], axis=0)
    times = np.array([look.time for look in looks])
    sharp = np.array([look.sharpness for look in looks])
    sharp = np.clip(sharp / max(np.percentile(sharp, 90), 1e-6), 0, 1)
    # eyes that are half shut are of use to few frames: of eight portraits one with shut eyes gained nothing
    awake = clear[eyes[clear] >= AWAKE * middle[3]]
    chosen: list[int] = []
    for time in np.linspace(times[0], times[-1], shots):
        left = np.setdiff1d(awake, chosen)
        left = left if len(left) else np.setdiff1d(clear, chosen)
        if len(left):
            chosen.append(int(left[np.abs(times[left] - time).argmin()]))
    kept: dict[int, str] = {}

    def put(index: int, why: str) -> None:
        """Put a frame in the place of its neighbour in time."""
        free = [number for number, other in enumerate(chosen) if other not in kept]
        if index in kept or not free:
            return
        near = min(free, key=lambda number: abs(times[chosen[number]] - times[index]))
        near = chosen.index(index) if index in chosen else near
        chosen[near] = index
        kept[index] = why

    turn = np.linalg.norm(np.column_stack([faces[:, 0], faces[:, 1:3] - middle[1:3]]), axis=1)
    closed, parted = np.maximum(middle[3] - eyes, 0), np.abs(mouth - middle[4])
    worse = turn / FRONTAL + closed / EYES + parted / LIPS + (1 - sharp) / SHARP
    put(first := int(clear[worse[clear].argmin()]), FIRST)
    widest, shut = int(clear[mouth[clear].argmax()]), int(clear[eyes[clear].argmin()])
    if shots >= SHOTS_WITH_MOUTH and mouth[widest] >= MOUTH_OPEN and max(mouth[chosen]) < ALIKE * mouth[widest]:
        put(widest, WIDE_MOUTH)
    if shots >= SHOTS_WITH_LIDS and eyes[shut] <= EYES_SHUT * middle[3]:
        put(shut, SHUT_EYES)
    others = [index for index in chosen if index != first]
    return [Pick(first, FIRST), *(Pick(index, kept.get(index, EVEN)) for index in others)]


def mouth_opens(looks: Sequence[Look]) -> bool:
    """Whether a mouth is open in any frame, so that teeth may be seen."""
    return max(_describe(look.points)[4] for look in looks) >= MOUTH_OPEN


def _describe(points: np.ndarray) -> tuple[float, ...]:
    """How a face (78 x 2, pixels) looks: the sines of its turns to the picture's right, downwards and of its tilt, and
    how far eyes and mouth are open, in widths of theirs."""
    pose = Pose.of(points)
    x, y = pose.lift(points)[:, :2].T

    def opening(upper: np.ndarray, lower: np.ndarray, corners: np.ndarray) -> float:
        return (y[lower].mean() - y[upper].mean()) / max(np.ptp(x[corners]), 1e-6)

    eyes = [opening(eye[1:3], eye[4:6], eye[[0, 3]]) for eye in (RIGHT_EYE, LEFT_EYE)]
    mouth = opening(INNER_LIPS[1:4], INNER_LIPS[5:8], OUTER_LIPS[[0, 6]])
    right, down, _ = -pose.rotation[:, 2]
    return float(right), float(down), float(pose.rotation[1, 0]), float(np.mean(eyes)), float(mouth)
