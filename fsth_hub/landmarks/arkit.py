"""Apple's 52 face shapes (ARKit) as an [`Expression`].

Cheeks, nostrils, tongue, squinting, the jaw moved sideways and what one side of the mouth does alone are left out: an
expression has no such controls.
"""

from collections.abc import Mapping
from math import degrees

from .expression import Expression


SIDES = ("Left", "Right")  # the person's own, as here
# What is read; ARKit has more. In the spelling of Live Link Face.
SHAPES = tuple(f"{shape}{side}" for shape in (
    "EyeBlink", "EyeWide", "EyeLookUp", "EyeLookDown", "EyeLookIn", "EyeLookOut", "BrowDown", "BrowOuterUp",
    "MouthSmile", "MouthFrown", "MouthStretch",
) for side in SIDES) + ("BrowInnerUp", "JawOpen", "MouthClose", "MouthPucker", "MouthFunnel")  # fmt: skip
JAW_OPEN = 2.0  # as far as the jaw goes in a yawn: the mouth is open at half of that
EYES_LOOK = 1.4  # an eye turned as far as it goes has left the middle by more than our gaze does


def expression_of(shapes: Mapping[str, float], yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Expression:
    """The expression of one frame.

    Args:
        shapes: By name, each 0 to 1; those of `SHAPES`.
        yaw, pitch, roll: Of the head in radians as in Live Link Face: to the person's right, down, clockwise as seen.
    """

    def both(shape: str) -> float:
        return (shapes[f"{shape}Left"] + shapes[f"{shape}Right"]) / 2

    def brow(side: str) -> float:
        return (shapes["BrowInnerUp"] + shapes[f"BrowOuterUp{side}"] - shapes[f"BrowDown{side}"]) / 2

    # to the person's left, which is the right of the picture
    left = shapes["EyeLookOutLeft"] - shapes["EyeLookInLeft"]
    right = shapes["EyeLookInRight"] - shapes["EyeLookOutRight"]
    return Expression.within(
        yaw=-degrees(yaw),
        pitch=degrees(pitch),
        roll=degrees(roll),
        eye_left=shapes["EyeWideLeft"] - shapes["EyeBlinkLeft"],
        eye_right=shapes["EyeWideRight"] - shapes["EyeBlinkRight"],
        gaze_x=EYES_LOOK * (left + right) / 2,
        gaze_y=EYES_LOOK * (both("EyeLookDown") - both("EyeLookUp")),
        cross=EYES_LOOK * (right - left) / 2,
        brow_left=brow("Left"),
        brow_right=brow("Right"),
        frown=both("BrowDown"),
        # MouthClose shuts the lips that the jaw has opened
        mouth=JAW_OPEN * (shapes["JawOpen"] - shapes["MouthClose"]),
        smile=both("MouthSmile") - 0.4 * both("MouthFrown"),
        pucker=shapes["MouthPucker"] + 0.7 * shapes["MouthFunnel"] - 0.5 * both("MouthStretch"),
    )
