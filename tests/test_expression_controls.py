"""Expressions: their ranges, and how they look on the resting face and on portraits."""

import itertools

import numpy as np
import pytest

from fsth_hub.landmarks import MotionAdapter
from fsth_hub.landmarks.expression import (
    CONTROLS,
    CROP_SIDE,
    RESTING_FACE,
    RESTING_LANDMARKS,
    RESTING_POSE,
    Expression,
)
from fsth_hub.landmarks.pose import Pose
from fsth_hub.models.cropping import crop_box
from fsth_hub.models.errors import FsthError
from fsth_hub.models.landmark_layout import FLIP, LEFT_EYE, LEFT_IRIS, RIGHT_EYE, RIGHT_IRIS, interocular
from testing_utils.faces import MOUTH, face, opening, turn


# Faces like those of paintings: wide, narrow, turned, tilted, with open, shut and half-shut eyes and mouths.
PORTRAITS = {
    "mean": face(),
    "laughing": Pose(turn(yaw=8, roll=-5), 0.5, np.array([130.0, 140.0])).project(
        Expression(mouth=0.5, smile=0.8, eye_left=-0.4, eye_right=-0.4).upright() * [1.1, 1, 1]
    ),
    "shut lips": face(width=0.9, eyes=12.0, mouth=0.0),
    "turned": face(width=0.9, eyes=8.0, mouth=2.0, yaw=-25, roll=8, scale=0.6),
    "looking up": face(eyes=18.0, mouth=10.0, pitch=-18, scale=0.3, centre=(90.0, 160.0)),
}
# Points of the upper and of the lower lip, from outside inwards and across.
LIPS = ((49, 61), (50, 61), (51, 62), (52, 63), (53, 63), (67, 58), (66, 57), (65, 56), (61, 67), (62, 66), (63, 65))
LIDS = ((37, 41), (38, 40), (43, 47), (44, 46))
BROWS_AND_LIDS = ((18, 37), (20, 38), (23, 43), (25, 44))
FACIAL = [name for name, control in CONTROLS.items() if control.group != "head"]


def shown(expression: Expression, portrait: np.ndarray, **options) -> np.ndarray:
    return MotionAdapter(portrait, RESTING_LANDMARKS, **options)(expression.landmarks())


def upright(points: np.ndarray, portrait: np.ndarray) -> np.ndarray:
    return Pose.of(portrait).lift(points)


def mirrored(values: dict[str, float]) -> Expression:
    swapped = {"eye_right": "eye_left", "eye_left": "eye_right", "brow_right": "brow_left", "brow_left": "brow_right"}
    negated = ("yaw", "roll", "shift_x", "gaze_x")
    return Expression(**{swapped.get(name, name): -v if name in negated else v for name, v in values.items()})


def extremes():
    """Every control at either end alone, and all ends of those that meet in one place."""
    for name, control in CONTROLS.items():
        for value in {control.low, control.high} - {0}:
            yield {name: value}
    corners = ("mouth", "smile", "pucker"), ("eye_right", "brow_right", "frown", "gaze_y"), ("yaw", "mouth", "gaze_x")
    for names in corners:
        for values in itertools.product(*[(CONTROLS[name].low, CONTROLS[name].high) for name in names]):
            yield dict(zip(names, values, strict=True))


EXTREMES = list(extremes())


def test_the_resting_face_lies_where_faces_are_cropped():
    left, top, side = crop_box(RESTING_LANDMARKS)[:3]
    assert abs(left) < 6 and abs(top) < 6 and side == pytest.approx(CROP_SIDE, abs=10)
    assert np.array_equal(Expression().landmarks(), RESTING_LANDMARKS)


@pytest.mark.parametrize("portrait", PORTRAITS.values(), ids=PORTRAITS)
def test_zero_changes_nothing(portrait):
    assert np.abs(shown(Expression(), portrait) - portrait).max() < 1e-4


@pytest.mark.parametrize("values", EXTREMES, ids=str)
def test_mirrored_values_give_mirrored_points(values):
    points, other = Expression(**values).landmarks(), mirrored(values).landmarks()[FLIP]
    other[:, 0] = 2 * RESTING_POSE.centre[0] - other[:, 0]
    np.testing.assert_allclose(points, other, atol=1e-3)


@pytest.mark.parametrize("portrait", PORTRAITS.values(), ids=PORTRAITS)
@pytest.mark.parametrize("strength", [1, 2])
def test_extremes_cross_nothing(portrait, strength):
    own = upright(portrait, portrait)
    for values in EXTREMES:
        head = CONTROLS[next(iter(values))].group == "head"
        points = shown(Expression(**values), portrait, strength=strength)
        seen = Pose.of(points).lift(points) if head else upright(points, portrait)
        for upper, lower in (*LIPS, *LIDS, *(BROWS_AND_LIDS if strength == 1 else ())):
            gap, before = seen[lower, 1] - seen[upper, 1], own[lower, 1] - own[upper, 1]
            assert gap > min(0, before) - 0.7, (values, upper, lower, gap)
        assert (np.diff(seen[[48, 60, 62, 64, 54], 0]) > 0).all(), values  # corners stay outside
        for eye, iris in ((RIGHT_EYE, RIGHT_IRIS), (LEFT_EYE, LEFT_IRIS)):
            low, high = seen[eye].min(axis=0) - 0.7, seen[eye].max(axis=0) + 0.7
            beyond = np.maximum(low - seen[iris[0]], seen[iris[0]] - high)[:2].max()
            assert beyond <= 0, values


@pytest.mark.parametrize("portrait", PORTRAITS.values(), ids=PORTRAITS)
def test_minus_one_shuts_each_eye_and_any_mouth(portrait):
    right, left = LIDS[:2], LIDS[2:]
    before = [opening(portrait, pairs) for pairs in (right, left, MOUTH)]
    for index, name in enumerate(("eye_right", "eye_left", "mouth")):
        points = shown(Expression(**{name: -1}), portrait)
        after = [opening(points, pairs) for pairs in (right, left, MOUTH)]
        assert abs(after[index]) < 0.012, (name, after)  # of the distance between the eyes
        for other in {0, 1, 2} - {index}:
            assert after[other] == pytest.approx(before[other], rel=0.02, abs=1e-4)


@pytest.mark.parametrize("name", FACIAL)
def test_what_the_face_does_leaves_the_head(name):
    for value in (CONTROLS[name].low, CONTROLS[name].high):
        pose = Pose.of(Expression(**{name: value}).landmarks())
        np.testing.assert_allclose(pose.rotation, np.eye(3), atol=1e-5)
        np.testing.assert_allclose([pose.scale, *pose.centre], [RESTING_POSE.scale, *RESTING_POSE.centre], atol=1e-3)


def test_the_head_goes_where_it_is_told():
    def nose(**values):
        return (Expression(**values).landmarks() - RESTING_LANDMARKS)[30]

    assert nose(yaw=10)[0] > 3 and nose(pitch=10)[1] > 3 and nose(shift_x=0.1)[0] > 3 and nose(shift_y=0.1)[1] > 3
    brows = Expression(roll=10).landmarks()
    assert brows[24, 1] > brows[19, 1]  # clockwise: the right of the picture lower
    assert interocular(Expression(zoom=0.1).landmarks()) > 1.09 * interocular(RESTING_LANDMARKS)


def test_gaze_leaves_the_lids_and_crosses():
    points = Expression(gaze_x=0.8, gaze_y=-0.5).landmarks()
    np.testing.assert_array_equal(points[:68], RESTING_LANDMARKS[:68])
    moved = (points - RESTING_LANDMARKS)[[68, 73]]
    assert (moved[:, 0] > 2).all() and (moved[:, 1] < -1).all()
    moved = (Expression(cross=1).landmarks() - RESTING_LANDMARKS)[[68, 73], 0]
    assert moved[0] > 2 and moved[1] == pytest.approx(-moved[0], abs=1e-4)


def test_smile_lifts_and_widens_the_corners():
    change = Expression(smile=1).upright() - RESTING_FACE
    np.testing.assert_allclose(change[[48, 54], :2], [(-11, -16), (11, -16)])
    assert opening(shown(Expression(mouth=1), PORTRAITS["mean"]), MOUTH) > 0.2


def test_arithmetic_ends_at_the_ranges():
    smile, turn = Expression(smile=0.6), Expression(yaw=20, eye_left=-0.5)
    assert smile + turn == Expression(smile=0.6, yaw=20, eye_left=-0.5)
    assert turn + turn == Expression(yaw=25, eye_left=-1) and 0.5 * turn == turn * 0.5 == Expression(
        yaw=10, eye_left=-0.25
    )
    assert Expression(smile=0.5).blend(turn, 0.25) == Expression(smile=0.375, yaw=5, eye_left=-0.125)
    assert smile.blend(turn, 0) == smile and turn.to_dict() == {"yaw": 20, "eye_left": -0.5}
    with pytest.raises(TypeError):
        smile + 1
    with pytest.raises(AttributeError):
        smile.yaw = 3


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"smile": 3}, "smile is from -0.4 to 1, not 3."),
        ({"yaw": -26}, "yaw is from -25 to 25, not -26."),
        ({"mouth": float("nan")}, "mouth is from -1 to 1, not nan."),
        ({"mouth": float("inf")}, "mouth is from -1 to 1, not inf."),
        ({"mouth": "1"}, "mouth is from -1 to 1, not '1'."),
        ({"mouth": True}, "mouth is from -1 to 1, not True."),
        ({"mouth": 10**400}, "mouth is from -1 to 1, not 1000"),
        ({"smlie": 1}, "There is no control 'smlie'; did you mean smile?"),
        ({"grin": 1}, "There is no control 'grin'; there are: yaw, "),
    ],
)  # fmt: skip
def test_refused_in_a_sentence(values, sentence):
    with pytest.raises(FsthError) as caught:
        Expression.of(values)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_controls_are_the_fields_and_say_what_they_do():
    assert list(CONTROLS) == list(Expression.__dataclass_fields__)
    assert {control.group for control in CONTROLS.values()} == {"head", "eyes", "mouth"}
    assert all(control.low <= 0 < control.high and "↔" in control.label for control in CONTROLS.values())
