"""Which parts of a face move: a driver's landmarks with the change of some regions, or of another driver's."""

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np

from ..models.errors import FsthError
from ..models.landmark_layout import (
    IRISES,
    JAW,
    LEFT_BROW,
    LEFT_EYE,
    LEFT_IRIS,
    NOSE_BASE,
    NUM_POINTS,
    RIGHT_BROW,
    RIGHT_EYE,
    RIGHT_IRIS,
)
from .pose import Pose


# What moves of the upright face with each region. The head is its pose, and the gaze where an iris looks from its eye.
_POINTS = {
    "head": np.arange(0),
    "brows": np.concatenate([RIGHT_BROW, LEFT_BROW]),
    "eyes": np.concatenate([RIGHT_EYE, LEFT_EYE]),
    "gaze": np.arange(0),
    "mouth": np.concatenate([JAW, NOSE_BASE, np.arange(48, 68)]),
}
REGIONS = tuple(_POINTS)


def check_regions(regions: Iterable[str] | str) -> tuple[str, ...]:
    """The regions in the order of `REGIONS`; one can be given as a string.

    Raises:
        FsthError: There is no such region, or none is given.
    """
    asked = [regions] if isinstance(regions, str) else list(regions) if isinstance(regions, Iterable) else [regions]
    for name in asked:
        if not isinstance(name, str) or name not in REGIONS:
            raise FsthError(f"There is no region {name!r}; there are: {', '.join(REGIONS)}.")
    if not asked:
        raise FsthError(f"Give at least one region that moves, of: {', '.join(REGIONS)}.")
    return tuple(name for name in REGIONS if name in asked)


class Change(NamedTuple):
    """How a face differs from a reference, in parts that can be told apart.

    Args:
        pose: Of the head.
        upright: 78 x 3, of the upright face; of the irises how they go with their eyes.
        gaze: 10 x 3, how the irises move against their eyes; NaN where they are not known.
    """

    pose: Pose
    upright: np.ndarray
    gaze: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, reference: np.ndarray) -> Self:
        """Of 78 x 2 points since a reference of the same face."""
        pose, resting = Pose.of(points), Pose.of(reference)
        upright = pose.lift(points) - resting.lift(reference)
        drift = np.empty((len(IRISES), 3))
        for eye, iris in ((RIGHT_EYE, RIGHT_IRIS), (LEFT_EYE, LEFT_IRIS)):
            drift[iris - IRISES[0]] = upright[eye[[0, 3]]].mean(axis=0)
        gaze = upright[IRISES] - drift
        upright[IRISES] = drift
        return cls(pose, upright, gaze)


def mix_regions(reference: np.ndarray, own: Change, other: Change | None, regions: tuple[str, ...]) -> np.ndarray:
    """A face (78 x 2) that moves in some regions as the other does, and in all others as it does itself.

    Args:
        reference: 78 x 2, the face that the changes are counted from.
        own, other: Changes of that face; None for a face that does not move.
        regions: The other's, of `REGIONS`.
    """
    resting = Pose.of(reference)
    still = Change(resting, np.zeros((NUM_POINTS, 3)), np.zeros((len(IRISES), 3)))
    other = other or still
    upright = own.upright.copy()
    points = np.concatenate([_POINTS[name] for name in regions])
    upright[points] = other.upright[points]
    if "eyes" in regions:
        upright[IRISES] = other.upright[IRISES]
    upright[IRISES] += other.gaze if "gaze" in regions else own.gaze
    pose = other.pose if "head" in regions else own.pose
    return pose.project(resting.lift(reference) + upright).astype(np.float32)


def keep_regions(points: np.ndarray, reference: np.ndarray, regions: tuple[str, ...]) -> np.ndarray:
    """A driver's points (78 x 2) with the movement of these regions alone; the others are as in the reference."""
    others = tuple(name for name in REGIONS if name not in regions)
    return mix_regions(reference, Change.of(points, reference), None, others) if others else points
