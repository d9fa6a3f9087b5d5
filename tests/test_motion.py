"""A driver's motion on a portrait's face."""

import numpy as np
import pytest

from fsth_hub.landmarks import MotionAdapter, adapt_shots, pick_reference
from fsth_hub.landmarks.motion import MAX_MOVE, MAX_TURN, MAX_ZOOM
from fsth_hub.landmarks.pose import Pose
from fsth_hub.models.errors import FsthError, NoFaceError
from fsth_hub.models.landmark_layout import IRISES, LEFT_EYE, LEFT_IRIS, RIGHT_EYE, RIGHT_IRIS
from testing_utils.faces import EYE, MOUTH, face, opening, turn


PORTRAIT = face(width=0.9, eyes=8.0, mouth=2.0, yaw=-25, roll=8, scale=0.6)


def test_pose_is_found_and_undone():
    points = face(yaw=30, pitch=-10, roll=15, scale=0.7)
    pose = Pose.of(points)
    np.testing.assert_allclose(pose.rotation, turn(30, -10, 15), atol=1e-3)
    assert pose.scale == pytest.approx(0.7, abs=1e-3)
    np.testing.assert_allclose(pose.project(pose.lift(points)), points, atol=1e-4)


@pytest.mark.parametrize("mode", ["relative", "absolute"])
def test_driver_on_its_own_face_is_itself(mode):
    reference = face(yaw=10)
    adapter = MotionAdapter(reference, reference, mode)
    for points in (reference, face(yaw=3, roll=5, mouth=25, gaze=4, centre=(132, 138)), face(eyes=12.0, scale=0.52)):
        np.testing.assert_allclose(adapter(points), points, atol=0 if mode == "absolute" else 1.2)


def test_absolute_takes_the_driver_as_it_is():
    points = face(yaw=20, mouth=20)
    np.testing.assert_array_equal(MotionAdapter(PORTRAIT, face(), "absolute")(points), points)


@pytest.mark.parametrize("portrait", [PORTRAIT, face(eyes=0, gaze=4)], ids=["awake", "asleep"])
def test_unmoved_driver_leaves_the_portrait_alone(portrait):
    reference = face(eyes=20, mouth=0, pitch=12)
    np.testing.assert_allclose(MotionAdapter(portrait, reference)(reference), portrait, atol=1e-3)


def test_neither_the_drivers_size_nor_its_place_matters():
    calm, active = face(yaw=5), face(yaw=-10, roll=4, mouth=20, eyes=5.0, gaze=5)
    expected = MotionAdapter(PORTRAIT, calm)(active)
    np.testing.assert_allclose(MotionAdapter(PORTRAIT, calm * 3 + 40)(active * 3 + 40), expected, atol=1e-2)


def test_result_scales_with_the_portrait():
    calm, active = face(), face(yaw=-10, mouth=20, centre=(138.0, 133.0))
    once = MotionAdapter(PORTRAIT, calm)(active)
    twice = MotionAdapter(PORTRAIT * 2, calm)(active)
    np.testing.assert_allclose(twice, once * 2, atol=1e-2)


def test_head_turns_and_moves_as_the_drivers_does():
    portrait = face(yaw=-20, scale=0.6, centre=(120.0, 150.0))
    # 6 pixels at a scale of 0.4 are 9 at one of 0.6; and the face grows by a twentieth.
    calm, active = face(yaw=5, scale=0.4), face(yaw=12, roll=5, scale=0.42, centre=(134.0, 140.0))
    moved = Pose.of(MotionAdapter(portrait, calm)(active))
    np.testing.assert_allclose(moved.rotation, turn(12, roll=5) @ turn(5).T @ turn(-20), atol=0.01)
    assert moved.scale == pytest.approx(0.63, rel=0.01)
    np.testing.assert_allclose(moved.centre, [129, 150], atol=0.5)


def test_head_goes_no_further_than_a_portrait_can_follow():
    """A driver who walks away would pull the face off its neck."""
    adapter = MotionAdapter(face(), face())
    portrait, between_eyes = Pose.of(face()), 50  # 100 units at a scale of 0.5
    nearer, far = (Pose.of(adapter(face(centre=(128.0 + x, 140.0)))).centre[0] - 128 for x in (60, 300))
    assert 0.25 * between_eyes < nearer < far <= MAX_MOVE * between_eyes
    turned = Pose.of(adapter(face(yaw=80))).rotation
    np.testing.assert_allclose(turned, turn(np.degrees(MAX_TURN) * np.tanh(np.radians(80) / MAX_TURN)), atol=0.02)
    assert Pose.of(adapter(face(scale=5))).scale <= portrait.scale * np.exp(MAX_ZOOM) + 1e-3


def test_strength_scales_what_moves():
    active = face(mouth=14, yaw=6, gaze=3, centre=(132.0, 141.0), scale=0.51)
    none, half, full, double = (MotionAdapter(PORTRAIT, face(), strength=s)(active) for s in (0, 0.5, 1, 2))
    np.testing.assert_allclose(none, PORTRAIT, atol=1e-3)
    whole = full - PORTRAIT
    np.testing.assert_allclose(half - PORTRAIT, whole / 2, atol=0.5)
    seen = np.r_[0:12, 17:78]  # without the far side of the jaw, which hardly turns
    np.testing.assert_allclose((double - PORTRAIT)[seen], whole[seen] * 2, atol=1.8)
    assert np.abs(whole).max() > 5
    assert opening(double, MOUTH) - opening(PORTRAIT, MOUTH) == pytest.approx(
        2 * (opening(full, MOUTH) - opening(PORTRAIT, MOUTH)), rel=0.1
    )


def test_strong_motion_stays_within_the_limits():
    far = face(yaw=80, centre=(500.0, 140.0), scale=5)
    moved, still = (Pose.of(MotionAdapter(face(), face(), strength=s)(far)) for s in (2, 0))
    assert np.arccos((np.trace(moved.rotation @ still.rotation.T) - 1) / 2) <= MAX_TURN + 0.02
    assert np.linalg.norm(moved.centre - still.centre) <= MAX_MOVE * 50 + 0.5
    assert moved.scale <= still.scale * np.exp(MAX_ZOOM) + 1e-3


@pytest.mark.parametrize("own", [4.0, 8.0, 30.0])
def test_strong_motion_does_not_close_further_than_shut(own):
    portrait = face(eyes=own, mouth=own)
    shut = MotionAdapter(portrait, face(eyes=22, mouth=20), strength=2)(face(eyes=0, mouth=0))
    assert opening(shut, EYE) == pytest.approx(0, abs=0.005)
    assert opening(shut, MOUTH) == pytest.approx(0, abs=0.005)
    half = MotionAdapter(portrait, face(eyes=22), strength=2)(face(eyes=16.5))
    assert opening(half, EYE) == pytest.approx(opening(portrait, EYE) / 2, rel=0.1)


@pytest.mark.parametrize(
    "mode, strength, message",
    [("relative", -0.1, "from 0 to 2"), ("relative", 2.1, "from 0 to 2"), ("relative", float("nan"), "from 0 to 2"),
     ("absolute", 0.5, "motion_strength is for relative motion")],
)  # fmt: skip
def test_bad_strength(mode, strength, message):
    with pytest.raises(FsthError, match=message):
        MotionAdapter(PORTRAIT, PORTRAIT, mode, strength)


def test_turning_head_keeps_its_shape():
    """A difference of flat points would make a portrait that faces the viewer as wide as the driver has become."""
    moved = MotionAdapter(face(), face(yaw=-50))(face(yaw=-44))
    np.testing.assert_allclose(moved, face(yaw=6), atol=0.5)


@pytest.mark.parametrize("own", [4.0, 8.0, 30.0])
def test_closed_eye_closes_and_goes_no_further(own):
    portrait = face(eyes=own, width=0.9)
    closed = MotionAdapter(portrait, face(eyes=22))(face(eyes=0))
    assert opening(portrait, EYE) > 0.03
    assert opening(closed, EYE) == pytest.approx(0, abs=0.005)
    half = MotionAdapter(portrait, face(eyes=22))(face(eyes=11))
    assert opening(half, EYE) == pytest.approx(opening(portrait, EYE) / 2, rel=0.1)


def test_one_eye_winks_alone():
    driver = face()
    driver[[37, 38]] = driver[[41, 40]]
    moved = MotionAdapter(PORTRAIT, face())(driver)
    still = face(width=0.9, eyes=8.0, mouth=2.0, yaw=-25, roll=8, scale=0.6)
    assert opening(moved, EYE) < 0.3 * opening(still, EYE)
    np.testing.assert_allclose(moved[LEFT_EYE], still[LEFT_EYE], atol=0.3)


def test_mouth_opens_in_proportion_and_shuts_without_crossing():
    portrait = face(mouth=0, scale=0.6)
    moved = MotionAdapter(portrait, face(mouth=0, scale=0.3))(face(mouth=20, scale=0.3))
    assert opening(moved, MOUTH) == pytest.approx(0.2, abs=0.02)
    shut = MotionAdapter(portrait, face(mouth=20))(face(mouth=0))
    assert opening(shut, MOUTH) == pytest.approx(0, abs=0.01)
    ajar = MotionAdapter(face(mouth=10), face(mouth=20))(face(mouth=0))
    assert opening(ajar, MOUTH) == pytest.approx(0, abs=0.01)
    outer = np.array([57]), np.array([66])
    assert (ajar[outer[0], 1] > ajar[outer[1], 1]).all()


def test_tremble_of_a_shut_mouth_is_not_blown_up():
    portrait = face(mouth=20)
    moved = MotionAdapter(portrait, face(mouth=0.6))(face(mouth=0))
    assert opening(moved, MOUTH) > 0.9 * opening(portrait, MOUTH)


def test_gaze_follows_and_stays_in_the_eye():
    portrait = face(width=0.8)
    moved = MotionAdapter(portrait, face())(face(gaze=8))
    assert moved[RIGHT_IRIS[0], 0] - portrait[RIGHT_IRIS[0], 0] == pytest.approx(8 * 0.8 * 0.5, rel=0.05)
    far = MotionAdapter(face(gaze=15), face())(face(gaze=20))
    for eye, iris in ((RIGHT_EYE, RIGHT_IRIS), (LEFT_EYE, LEFT_IRIS)):
        assert far[eye[0], 0] <= far[iris[0], 0] <= far[eye[3], 0] + 1e-3


def test_missing_irises():
    without = face(mouth=10)
    without[IRISES] = np.nan
    blind = PORTRAIT.copy()
    blind[IRISES] = np.nan
    moved = MotionAdapter(blind, face())(face(mouth=10))
    assert np.isnan(moved[IRISES]).all() and np.isfinite(moved[:68]).all()
    for reference in (face(), without):
        moved = MotionAdapter(PORTRAIT, reference)(without)
        np.testing.assert_allclose(moved[IRISES], PORTRAIT[IRISES], atol=0.3)


def test_missing_frame_holds_the_last_points():
    adapter = MotionAdapter(PORTRAIT, face())
    np.testing.assert_array_equal(adapter(None), PORTRAIT)
    moved = adapter(face(mouth=20))
    np.testing.assert_array_equal(adapter(None), moved)
    assert (moved != PORTRAIT).any()


def test_reference_is_the_frame_most_like_the_portrait():
    portrait = face(width=0.95, yaw=20, mouth=1, eyes=12, scale=0.7)
    frames = [None, face(mouth=20, yaw=20), face(yaw=-20, mouth=1), face(yaw=18, mouth=1.5), face(yaw=18, eyes=1.0)]
    assert pick_reference(portrait, frames) == 3
    # A frame in mid-blink is no reference, even where the head is turned a little less well without it.
    assert pick_reference(portrait, [face(yaw=20, eyes=1.0), face(yaw=16.5)]) == 1
    with pytest.raises(NoFaceError, match="no face"):
        pick_reference(portrait, [None, None])


def test_unknown_mode():
    with pytest.raises(FsthError, match="motion must be 'relative' or 'absolute', not 'sideways'"):
        MotionAdapter(PORTRAIT, PORTRAIT, "sideways")


def test_a_far_cheek_does_not_bulge():
    """In half profile the outline of the far cheek goes with the head, but is not turned out with it."""
    for portrait, far in ((face(yaw=35), [1, 2, 3]), (face(yaw=-35), [13, 14, 15])):
        adapt, rigid = MotionAdapter(portrait, face()), MotionAdapter(portrait, face())
        rigid.hidden = 0 * adapt.hidden
        moved, turned = (adapter(face(yaw=8))[:, 0] - portrait[:, 0] for adapter in (adapt, rigid))
        assert np.abs(turned[far]).max() > 1
        assert np.abs(moved[far]).mean() < 0.5 * np.abs(turned[far]).mean()
        np.testing.assert_allclose(moved[17:], turned[17:], atol=1e-4)
    assert not MotionAdapter(face(yaw=20), face()).hidden.any()


def test_a_head_in_half_profile_turns_less():
    turns = []
    for yaw in (0, 20, 35):
        portrait = face(yaw=yaw)
        moved = Pose.of(MotionAdapter(portrait, face())(face(yaw=-25))).rotation
        turns.append(np.degrees(np.arccos((np.trace(moved @ Pose.of(portrait).rotation.T) - 1) / 2)))
    assert turns[1] == pytest.approx(turns[0], rel=0.1) and turns[2] < 0.85 * turns[0]


# Shots.

NEAR = [face(mouth=mouth, yaw=yaw) for mouth, yaw in ((4, 0), (20, 5), (12, 8))]
FAR = [face(mouth=mouth, yaw=yaw, scale=0.3, centre=(60.0, 90.0)) for mouth, yaw in ((4, 0), (20, 5), (12, 8))]
TWO = [(0, 3), (3, 6)]


def test_each_shot_moves_from_a_reference_of_its_own():
    """The same motion, nearer to the camera and farther away, moves the portrait alike; as one shot it would leap."""
    near, far = np.split(np.stack(list(adapt_shots(face(), NEAR + FAR, TWO))), 2)
    np.testing.assert_allclose(far, near, atol=0.2)
    np.testing.assert_array_equal(near, np.stack(list(adapt_shots(face(), NEAR))))
    as_one = np.stack(list(adapt_shots(face(), NEAR + FAR)))
    assert np.abs(as_one[3:] - as_one[:3]).max() > 10


def test_a_shot_without_a_face_holds_the_pose_before():
    points = list(adapt_shots(PORTRAIT, [None, None, *NEAR, None, None, *FAR], [(0, 2), (2, 5), (5, 7), (7, 10)]))
    np.testing.assert_array_equal(points[:2], [PORTRAIT.astype(np.float32)] * 2)
    np.testing.assert_array_equal(points[5:7], [points[4]] * 2)
    assert len(points) == 10 and np.abs(points[7] - points[6]).max() > 1


def test_a_face_that_is_gone_as_a_shot_begins_holds_the_pose_before():
    points = list(adapt_shots(PORTRAIT, [*NEAR, None, *FAR[1:]], TWO))
    np.testing.assert_array_equal(points[3], points[2])


def test_a_reference_frame_is_that_of_its_own_shot():
    points = list(adapt_shots(PORTRAIT, NEAR + FAR, TWO, reference_frame=4))
    np.testing.assert_allclose(points[4], PORTRAIT, atol=1e-3)
    np.testing.assert_array_equal(points[:3], list(adapt_shots(PORTRAIT, NEAR)))
    given = list(adapt_shots(PORTRAIT, NEAR + FAR, TWO, reference=FAR[1]))
    np.testing.assert_array_equal(given[3:], points[3:])
    assert np.abs(np.array(given[:3]) - points[:3]).max() > 1
    changed = list(adapt_shots(PORTRAIT, NEAR + FAR, TWO, change=lambda points, unmoved: unmoved))
    np.testing.assert_allclose(changed, [PORTRAIT] * 6, atol=1e-3)


@pytest.mark.parametrize("frame", [-1, 6, 2])
def test_a_reference_frame_that_shows_no_face(frame):
    with pytest.raises(FsthError, match=f"reference_frame={frame} is no frame"):
        list(adapt_shots(PORTRAIT, [*NEAR[:2], None, *FAR], TWO, reference_frame=frame))
    with pytest.raises(NoFaceError):
        list(adapt_shots(PORTRAIT, [None] * 6, TWO))
