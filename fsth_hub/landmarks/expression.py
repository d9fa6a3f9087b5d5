"""Expressions of a face as a few numbers, and the landmarks of a resting face that shows them.

What is made up (a slider, a keyframe, a row of ARKit shapes, a mouth cue) is an [`Expression`], drawn on one resting
face; from there a [`MotionAdapter`] takes it to a portrait, as it takes a driver's movement.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from math import isfinite
from numbers import Real
from typing import Self

import numpy as np

from ..models.errors import FsthError
from ..models.landmark_layout import (
    INNER_LIPS,
    LEFT_BROW,
    LEFT_EYE,
    LEFT_IRIS,
    OUTER_LIPS,
    RIGHT_BROW,
    RIGHT_EYE,
    RIGHT_IRIS,
)
from .pose import MEAN_FACE, UNITS_BETWEEN_EYES, Pose


@dataclass(frozen=True)
class Control:
    """One field of an [`Expression`], for those who show it.

    Args:
        label: In words, its low end before its high one, such as "Look left ↔ right"; left and right of the picture
            where it says no more.
        group: "head", "eyes" or "mouth".
        low, high: Its range; 0 is the portrait itself.
    """

    label: str
    group: str
    low: float
    high: float


CONTROLS = {
    "yaw": Control("Turn left ↔ right, degrees", "head", -25, 25),
    "pitch": Control("Nod up ↔ down, degrees", "head", -25, 25),
    "roll": Control("Tilt left ↔ right, degrees", "head", -25, 25),
    "shift_x": Control("Move left ↔ right", "head", -0.5, 0.5),
    "shift_y": Control("Move up ↔ down", "head", -0.5, 0.5),
    "zoom": Control("Further ↔ nearer", "head", -0.2, 0.2),
    "eye_right": Control("The person's right eye: shut ↔ wide", "eyes", -1, 1),
    "eye_left": Control("The person's left eye: shut ↔ wide", "eyes", -1, 1),
    "gaze_x": Control("Look left ↔ right", "eyes", -1, 1),
    "gaze_y": Control("Look up ↔ down", "eyes", -1, 1),
    "cross": Control("Eyes apart ↔ crossed", "eyes", -1, 1),
    "brow_right": Control("The person's right brow: down ↔ up", "eyes", -1, 1),
    "brow_left": Control("The person's left brow: down ↔ up", "eyes", -1, 1),
    "frown": Control("Brows at ease ↔ knit", "eyes", 0, 1),
    "mouth": Control("Mouth shut ↔ open", "mouth", -1, 1),
    "smile": Control("Sad ↔ smiling", "mouth", -0.4, 1),
    "pucker": Control("Lips wide ↔ puckered", "mouth", -0.5, 1),
}


@dataclass(frozen=True)
class Expression:
    """How a face differs from the portrait: 0 everywhere is the portrait itself.

    `+` adds two, `*` makes one stronger or weaker; what goes beyond a range ends there.

    Args:
        yaw, pitch, roll: Of the head, -25 to 25 degrees: to the right of the picture, down, clockwise. (A portrait
            follows 17 degrees of it at most.)
        shift_x, shift_y: Of the head, -0.5 to 0.5 distances between the eyes: to the right, down.
        zoom: -0.2 to 0.2, the logarithm of the head's size.
        eye_right, eye_left: The person's own right and left eye: -1 is shut, 1 wide open.
        gaze_x, gaze_y: -1 to 1, to the right of the picture, down; lids stay.
        cross: 1 is cross-eyed, -1 the opposite.
        brow_right, brow_left: -1 is down, 1 raised.
        frown: 0 to 1.
        mouth: -1 is shut, whatever the portrait's mouth does, 1 open.
        smile: -0.4 (corners of the mouth down) to 1.
        pucker: -0.5 (lips wide) to 1.

    Raises:
        FsthError: A value is no number within its range.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    zoom: float = 0.0
    eye_right: float = 0.0
    eye_left: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    cross: float = 0.0
    brow_right: float = 0.0
    brow_left: float = 0.0
    frown: float = 0.0
    mouth: float = 0.0
    smile: float = 0.0
    pucker: float = 0.0

    def __post_init__(self):
        for name, control in CONTROLS.items():
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not control.low <= value <= control.high:
                shown = f"{value:g}" if number and abs(value) < 1e9 else repr(value)[:40]
                raise FsthError(f"{name} is from {control.low:g} to {control.high:g}, not {shown}.")
            object.__setattr__(self, name, float(value))

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Self:
        """Of values by name, as files and commands have them; `FsthError` for a name that does not exist."""
        for name in values:
            if name not in CONTROLS:
                near = get_close_matches(str(name), CONTROLS, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(CONTROLS)}."
                raise FsthError(f"There is no control '{name}'; {hint}")
        return cls(**values)

    @classmethod
    def within(cls, **values: float) -> Self:
        """Of finite values of any size: what goes beyond a range ends there."""
        return cls(**{name: min(max(v, CONTROLS[name].low), CONTROLS[name].high) for name, v in values.items()})

    def to_dict(self) -> dict[str, float]:
        """What is not 0, by name."""
        return {name: value for name, value in asdict(self).items() if value != 0}

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, Expression):
            return NotImplemented
        return self.within(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __mul__(self, factor: float) -> Self:
        if not isinstance(factor, Real) or isinstance(factor, bool) or not isfinite(factor):
            return NotImplemented
        return self.within(**{f.name: getattr(self, f.name) * factor for f in fields(self)})

    __rmul__ = __mul__

    def blend(self, other: Self, share: float) -> Self:
        """What lies between this (a share of 0) and the other (1)."""
        return self * (1 - share) + other * share

    def upright(self) -> np.ndarray:
        """The resting face with this expression, upright, 78 x 3 in units of the mean face; the head does not move."""
        face = RESTING_FACE.copy()
        for lift, brow in ((self.brow_right, RIGHT_BROW), (self.brow_left, LEFT_BROW)):
            face[brow, 1] -= lift * (BROW_UP if lift > 0 else BROW_DOWN)
        for points, inward in FROWN:
            face[points] += self.frown * FROWN_STEP * (inward, 1, 0) * FROWN_SHARES[:, None]
        for openness, eye in ((self.eye_right, RIGHT_EYE), (self.eye_left, LEFT_EYE)):
            upper, lower = eye[[1, 2]], eye[[5, 4]]
            if openness < 0:
                face[upper] -= openness * (face[lower] - face[upper])
            else:
                face[upper, 1] -= openness * WIDE * _width(eye)
        for iris, eye, inward in ((RIGHT_IRIS, RIGHT_EYE, 1), (LEFT_IRIS, LEFT_EYE, -1)):
            gaze = np.array([self.gaze_x + inward * self.cross, self.gaze_y])
            face[iris, :2] += gaze * GAZE * _width(eye)

        middle = face[LIPS, 0].mean()
        for point, (x, y) in SMILE.items():
            face[point, :2] += self.smile * np.array([x, y])
        face[LIPS, 0] = middle + (face[LIPS, 0] - middle) * (1 - NARROWED * self.pucker)
        if self.mouth > 0:
            _open(face, self.mouth * OPENED)
        else:
            # with the shares by which the adapter closes lips: a mouth that is shut already then stays as it is
            for lower, upper, followers in SHUTTING:
                rise = self.mouth * (RESTING_FACE[lower, 1] - RESTING_FACE[upper, 1])
                for point, share in followers.items():
                    face[point, 1] += share * rise
        return face

    def landmarks(self) -> np.ndarray:
        """The resting face with this expression and pose, 78 x 2 float32, pixels of a crop of `CROP_SIDE`."""
        (cy, cp, cr), (sy, sp, sr) = (turn(np.radians((self.yaw, self.pitch, self.roll))) for turn in (np.cos, np.sin))
        turn = np.array([(cy, 0, -sy), (0, 1, 0), (sy, 0, cy)])
        nod = np.array([(1, 0, 0), (0, cp, -sp), (0, sp, cp)])
        tilt = np.array([(cr, -sr, 0), (sr, cr, 0), (0, 0, 1)])
        shift = np.array([self.shift_x, self.shift_y]) * UNITS_BETWEEN_EYES * RESTING_POSE.scale
        pose = replace(
            RESTING_POSE,
            rotation=tilt @ nod @ turn,
            scale=RESTING_POSE.scale * np.exp(self.zoom),
            centre=RESTING_POSE.centre + shift,
        )
        return pose.project(self.upright()).astype(np.float32)


def _width(eye: np.ndarray) -> float:
    return np.ptp(RESTING_FACE[eye[[0, 3]], 0])


def _open(face: np.ndarray, amount: float) -> None:
    """Lower the lower lip by so many units, and what goes with it."""
    for point, share in OPENING.items():
        face[point, 1] += share * amount


# All in units of the mean face, hundredths of the distance between the eyes.
LIPS = np.concatenate([OUTER_LIPS, INNER_LIPS])
BROW_UP, BROW_DOWN = 11, 7
# From the middle outwards, and which way the middle lies.
FROWN = ((RIGHT_BROW[:1:-1], 1), (LEFT_BROW[:3], -1))
FROWN_STEP, FROWN_SHARES = np.array([4, 5, 0]), np.array([1, 0.6, 0.3])
WIDE, GAZE = 0.14, np.array([0.28, 0.11])  # of the eye's width
# The skull's points, of which the pose is told, stay: a mouth that opens does not nod.
OPENING = dict.fromkeys((56, 57, 58, 65, 66, 67), 1.0) | dict.fromkeys((55, 59), 0.8)
OPENING |= dict.fromkeys((48, 54, 60, 64), 0.3)
OPENING |= dict(zip(range(4, 13), (0.25, 0.48, 0.68, 0.75, 0.75, 0.75, 0.68, 0.48, 0.25), strict=True))
OPENED = 26
# A point of the inner lower lip, the one above it, and those that rise with it, each by a share.
SHUTTING = ((67, 61, {67: 1, 58: 1, 59: 0.5}), (66, 62, {66: 1, 57: 1}), (65, 63, {65: 1, 56: 1, 55: 0.5}))
# The corners, then towards the middle: each with what lies above or below it, so that lips keep their thickness.
SMILE = {48: (-11, -16), 60: (-11, -16), 49: (-8, -8), 59: (-6, -10), 61: (-6, -6), 67: (-5, -6)}
SMILE |= {50: (-3, -4), 58: (-3, -3)}
SMILE |= {
    mirror: (-SMILE[point][0], SMILE[point][1])
    for point, mirror in {48: 54, 60: 64, 49: 53, 59: 55, 61: 63, 67: 65, 50: 52, 58: 56}.items()
}
NARROWED = 0.22

# The mean face with its lips apart: a mouth that hardly opens cannot be closed by what another mouth is open, for the
# adapter takes an opening for at most three times the driver's (MAX_CLOSING_GAIN).
RESTING_FACE = MEAN_FACE.copy()
_open(RESTING_FACE, 16)
CROP_SIDE = 256
RESTING_POSE = Pose(np.eye(3), 0.52, np.array([128.0, 146.0]))  # where `crop_box` puts a face
RESTING_LANDMARKS = RESTING_POSE.project(RESTING_FACE).astype(np.float32)
