"""A driver's motion on a portrait's face.

Relative motion moves the portrait's own landmarks by the change of the driver's since a reference frame, so that the
driver's face shape and resting expression stay out of the result. A change has two parts. The head's (turning, moving,
coming nearer) is taken over, the less of it the further it goes beyond what a portrait can follow. The face's is
measured on the driver's face as if it looked straight at the viewer, scaled to the portrait's features, and added
there in the same way; so a driver in half profile can move a portrait that faces the viewer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from ..checks import check_choice, check_number
from ..models.errors import FsthError, NoFaceError
from ..models.landmark_layout import FACE, JAW, LEFT_EYE, LEFT_IRIS, RIGHT_EYE, RIGHT_IRIS
from .pose import UNITS_BETWEEN_EYES, Pose


MotionMode = Literal["relative", "absolute"]

# Openings, as pairs of an upper and a lower point: two of each eye, three between the inner lips.
UPPER = np.array([37, 38, 43, 44, 61, 62, 63])
LOWER = np.array([41, 40, 47, 46, 67, 66, 65])
# When an opening closes more or less than the face's scale says, these points make up the difference, each by a share
# of that opening: the upper lids, the inner lower lip, and the outer lower lip with it.
CLOSING = ((37, 0, -1.0), (38, 1, -1.0), (43, 2, -1.0), (44, 3, -1.0), (67, 4, 1.0), (66, 5, 1.0), (65, 6, 1.0),
           (59, 4, 0.5), (58, 4, 1.0), (57, 5, 1.0), (56, 6, 1.0), (55, 6, 0.5))  # fmt: skip
MAX_CLOSING_GAIN = 3.0  # an opening hardly open in the reference frame would blow its jitter up

# How far a head can be taken from its portrait's pose before too much is seen that the portrait does not show: turned
# in radians, moved in distances between the eyes, and as the logarithm of its size.
MAX_TURN, MAX_MOVE, MAX_ZOOM = 0.3, 0.5, 0.2
MAX_STRENGTH = 2.0
# A portrait in half profile shows less of the head still: beyond this sine of its yaw it turns less far, by so much.
HALF_PROFILE, TURNED_LESS = 0.42, 2.5
# Where the axis of the neck lies behind the eyes, in hundredths of the distance between them. What of the jaw faces
# away from there and from the viewer, by these sines in part and wholly, is not seen, but the outline of the cheek.
NECK_DEPTH = 90
FAR_SIDE = (0.42, 0.52)

EYES = ((RIGHT_EYE, RIGHT_IRIS), (LEFT_EYE, LEFT_IRIS))


class MotionAdapter:
    """Turns a driver's landmarks, frame by frame, into those of a portrait.

    All points are 78 x 2, x then y, pixels of a crop: the portrait's of the portrait's crop, the driver's of the
    driver's crop, both crops of the same size.

    Args:
        portrait: The portrait's points.
        reference: The driver's points in the frame that counts as unmoved: the first one, or `pick_reference`'s.
        mode: "relative" moves the portrait's points by the driver's change; "absolute" takes the driver's points as
            they are (the paper's way), and with them the shape of the driver's face.
        strength: How much of the driver's change to take over, 0 (the portrait stays still) to 2; relative motion
            only. However strong, a head goes no further than a portrait can follow, and eyes and mouth shut no
            further than shut.
        limited: False for a face that is no picture: its head goes as far as the driver's.

    Raises:
        FsthError: There is no such mode, or the strength does not fit.
    """

    def __init__(
        self,
        portrait: np.ndarray,
        reference: np.ndarray,
        mode: MotionMode = "relative",
        strength: float = 1.0,
        limited: bool = True,
    ):
        check_motion(mode, strength)
        self.mode, self.strength = mode, strength
        self.last = np.asarray(portrait, np.float32)

        self.portrait_pose, self.reference_pose = Pose.of(portrait), Pose.of(reference)
        self.portrait = self.portrait_pose.lift(portrait)  # 78 x 3
        self.reference = self.reference_pose.lift(reference)
        beyond = np.clip(abs(self.portrait_pose.rotation[0, 2]) - HALF_PROFILE, 0, 0.3)
        self.max_turn = MAX_TURN * (1 - TURNED_LESS * beyond) if limited else np.inf
        self.max_move, self.max_zoom = (MAX_MOVE, MAX_ZOOM) if limited else (np.inf, np.inf)
        outward = (self.portrait[JAW] - [0, 0, NECK_DEPTH]) * [1, 0, 1]  # 17 x 3
        away = outward @ self.portrait_pose.rotation[2] / np.linalg.norm(outward, axis=1)
        self.hidden = np.interp(away, FAR_SIDE, (0, 1))[:, None]  # 17 x 1, of the jaw
        self.scale = self.portrait[FACE].std(axis=0) / self.reference[FACE].std(axis=0)  # x, y, z
        self.closing_gain = np.minimum(
            _openings(self.portrait) / _openings(self.reference), MAX_CLOSING_GAIN * self.scale[1]
        )

    def __call__(self, points: np.ndarray | None) -> np.ndarray:
        """The portrait's points for one frame of the driver, in its crop.

        Args:
            points: The driver's points, or None where the face is gone; the last points are then held.

        Returns:
            78 x 2 float32, pixels of the portrait's crop.
        """
        if points is not None:
            adapted = points if self.mode == "absolute" else self._relative(points)
            self.last = np.asarray(adapted, np.float32)
        return self.last

    def _relative(self, points: np.ndarray) -> np.ndarray:
        portrait, reference, driver = self.portrait_pose, self.reference_pose, Pose.of(points)
        change = self.strength * (driver.lift(points) - self.reference)
        change[JAW] *= 1 - self.hidden
        moved = self.portrait + change * self.scale
        self._close(moved, change)
        for eye, iris in EYES:
            self._look(moved, change, eye, iris)

        move = self.strength * (driver.centre - reference.centre) / (UNITS_BETWEEN_EYES * reference.scale)
        zoom = self.strength * np.log(driver.scale / reference.scale)
        pose = Pose(
            rotation=_soften_turn(driver.rotation @ reference.rotation.T, self.strength, self.max_turn)
            @ portrait.rotation,
            scale=portrait.scale * np.exp(_soften(zoom, self.max_zoom)),
            centre=portrait.centre + _soften(move, self.max_move) * UNITS_BETWEEN_EYES * portrait.scale,
        )
        seen = pose.project(moved)
        # The outline of a cheek is not a place on the skull: as the head turns, others come to lie on it. It moves and
        # grows with the head, but turned with it the far cheek would bulge.
        unturned = replace(pose, rotation=portrait.rotation).project(moved)
        seen[JAW] += self.hidden * (unturned[JAW] - seen[JAW])
        return seen

    def _close(self, moved: np.ndarray, change: np.ndarray) -> None:
        """Close eyes and mouth in proportion: what shuts on the driver shuts on the portrait, and no further."""
        closing = np.minimum(change[LOWER, 1] - change[UPPER, 1], 0)
        # stronger motion must not take lids and lips through each other
        wanted = np.maximum(closing, -_openings(self.reference)) if self.strength > 1 else closing
        excess = wanted * self.closing_gain - closing * self.scale[1]
        for point, opening, share in CLOSING:
            moved[point, 1] += share * excess[opening]

    def _look(self, moved: np.ndarray, change: np.ndarray, eye: np.ndarray, iris: np.ndarray) -> None:
        """Move an iris by the driver's gaze, in widths of the eye, and keep its centre between the lids."""
        corners = eye[[0, 3]]
        width = np.ptp(self.portrait[corners, 0]) / np.ptp(self.reference[corners, 0])
        drift = change[corners].mean(axis=0)
        gaze = np.nan_to_num(change[iris] - drift)  # a driver without irises: they go with the eye
        moved[iris] = self.portrait[iris] + drift * self.scale + gaze * width

        # Where the portrait's own iris lies outside its lids, as in a closed eye, it may stay so.
        own, lids = self.portrait[iris[0]], self.portrait[eye]
        low = moved[eye].min(axis=0) + np.minimum(own - lids.min(axis=0), 0)
        high = moved[eye].max(axis=0) + np.maximum(own - lids.max(axis=0), 0)
        moved[iris] += np.clip(moved[iris[0]], low, high) - moved[iris[0]]


def adapt_shots(
    portrait: np.ndarray,
    landmarks: Sequence[np.ndarray | None],
    shots: Sequence[tuple[int, int]] = (),
    reference_frame: int | None = None,
    mode: MotionMode = "relative",
    strength: float = 1.0,
    *,
    reference: np.ndarray | None = None,
    change: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    limited: bool = True,
) -> Iterator[np.ndarray]:
    """
    The points to draw for each frame of a driver, 78 x 2 float32, each shot's motion counted from a frame of its own.

    Args:
        portrait, mode, strength, limited: As in [`MotionAdapter`].
        landmarks: The driver's points in every frame, 78 x 2 each, or None where the face is gone.
        shots: First frame of each shot and the one after its last; by default all is one.
        reference_frame: For the shot that it lies in; the others', and by default all, are picked.
        reference: The driver's points that count as unmoved in all shots, instead of a frame of theirs.
        change: What is made of a driver's points, given them and the unmoved ones.

    Raises:
        FsthError: The frame is none of the clip or shows no face; [`NoFaceError`] where no frame does.
    """
    if reference_frame is None:
        if reference is None:
            pick_reference(portrait, landmarks)  # is there a face at all?
    elif not 0 <= reference_frame < len(landmarks) or landmarks[reference_frame] is None:
        raise FsthError(f"reference_frame={reference_frame} is no frame of the driving clip, or shows no face.")
    last = np.asarray(portrait, np.float32)
    for start, stop in shots or [(0, len(landmarks))]:
        seen = landmarks[start:stop]
        if all(points is None for points in seen):
            yield from [last] * len(seen)
            continue
        if reference_frame is not None and start <= reference_frame < stop:
            unmoved = landmarks[reference_frame]
        else:
            unmoved = seen[pick_reference(portrait, seen)] if reference is None else reference
        adapt = MotionAdapter(portrait, unmoved, mode, strength, limited)
        adapt.last = last
        for points in seen:
            last = adapt(points if points is None or change is None else change(points, unmoved))
            yield last


def check_motion(mode: str, strength: float) -> None:
    """Refuse (`FsthError`) a mode that does not exist, or a strength that does not fit."""
    check_choice("motion", mode, get_args(MotionMode))
    check_number("motion_strength", strength, 0, MAX_STRENGTH)
    if mode == "absolute" and strength != 1:
        raise FsthError("motion_strength is for relative motion: leave it out where motion is 'absolute'.")


def _soften(change: np.ndarray, limit: float) -> np.ndarray:
    """A change of any length as it is when small, and never longer than the limit."""
    length = np.linalg.norm(change)
    if length == 0 or np.isinf(limit):
        return change
    return change * (limit * np.tanh(length / limit) / length)


def _soften_turn(rotation: np.ndarray, strength: float, limit: float) -> np.ndarray:
    """A rotation (3 x 3) about its axis by its angle times the strength, softened (Rodrigues' formula)."""
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    if angle < 1e-6:
        return rotation
    cross = (rotation - rotation.T) / (2 * np.sin(angle))  # the axis as a cross product
    softened = _soften(strength * angle, limit)
    return np.eye(3) + np.sin(softened) * cross + (1 - np.cos(softened)) * cross @ cross


def pick_reference(portrait: np.ndarray, frames: Sequence[np.ndarray | None]) -> int:
    """The driver's frame whose pose and expression are most like the portrait's: the best reference frame.

    Args:
        portrait: 78 x 2, pixels of any crop.
        frames: The driver's points in every frame, 78 x 2 each, or None where the face is gone.

    Returns:
        The frame's index.

    Raises:
        NoFaceError: No frame has a face.
    """
    wanted = _expression(portrait)
    distances = [np.inf if points is None else np.square(_expression(points) - wanted).sum() for points in frames]
    if not np.isfinite(distances).any():
        raise NoFaceError("The driving clip shows no face; use one in which a face is seen from the front.")
    return int(np.argmin(distances))


def _expression(points: np.ndarray) -> np.ndarray:
    """How a face looks, whatever its size and place: its points, and its openings counting as much as all of them."""
    pose = Pose.of(points)
    openings = _openings(pose.lift(points))
    seen = (points[FACE] - pose.centre) / pose.scale
    return np.concatenate([seen.ravel(), openings * np.sqrt(len(FACE) / len(openings))])


def _openings(upright: np.ndarray) -> np.ndarray:
    """How far each eye and the mouth are open; never quite nothing, for it divides."""
    return np.maximum(upright[LOWER, 1] - upright[UPPER, 1], 0.1)
