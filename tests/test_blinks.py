"""Blinks that the detector saw only in part, led to their end."""

import numpy as np
import pytest

from fsth_hub.landmarks import BlinkCloser, close_blinks
from fsth_hub.models.cropping import CropBox
from fsth_hub.models.landmark_layout import LEFT_EYE, RIGHT_EYE
from fsth_hub.pipelines.driving import DrivingMotion, adapt_motion
from testing_utils.faces import face, opening


FPS = 25
LEFT = ((43, 47), (44, 46))
RIGHT = ((37, 41), (38, 40))
OPEN = [15.0] * 20


def frames(*lids, **options):
    return [face(eyes=eyes, **options) for eyes in lids]


def lids(landmarks, pairs=RIGHT):
    return np.array([opening(points, pairs) for points in landmarks])


@pytest.mark.parametrize("yaw", [0, 25])
@pytest.mark.parametrize("deepest", [1.0, 4.0, 8.0])
def test_eyes_shut_whatever_the_detector_leaves_open(deepest, yaw):
    halfway = (deepest + 15) / 2
    clip = frames(*OPEN, halfway, deepest, deepest, halfway, *OPEN, yaw=yaw)
    closed = close_blinks(clip, FPS)
    for pairs in (RIGHT, LEFT):
        seen, before = lids(closed, pairs), lids(clip, pairs)
        assert abs(seen[[21, 22]]).max() < 0.02 * before[0]
        assert 0.3 * before[0] < seen[20] < before[20]  # on the way there
        np.testing.assert_array_equal(seen[:20], before[:20])
    others = np.setdiff1d(np.arange(78), np.r_[RIGHT_EYE, LEFT_EYE])
    np.testing.assert_array_equal(np.array(closed)[:, others], np.array(clip)[:, others])
    np.testing.assert_array_equal(lids(clip), lids(frames(*OPEN, halfway, deepest, deepest, halfway, *OPEN, yaw=yaw)))


@pytest.mark.parametrize("between", [[11.0], [8.0] * 45, []], ids=["hardly", "smile", "never"])
def test_what_is_no_blink_stays(between):
    """Eyes that hardly close, and those that are narrow for longer than a blink."""
    clip = frames(*OPEN, *between, *OPEN)
    np.testing.assert_array_equal(close_blinks(clip, FPS), clip)


def test_other_eye_of_a_wink_stays_open():
    clip = frames(*OPEN, 15.0, *OPEN)
    clip[20][[37, 38]] = clip[20][[41, 40]] - [0, 1]
    closed = close_blinks(clip, FPS)
    assert lids(closed)[20] < 0.005 < lids(clip)[20]
    np.testing.assert_array_equal(np.array(closed)[:, LEFT_EYE], np.array(clip)[:, LEFT_EYE])


def test_an_eye_that_reads_less_shut_in_a_blink_shuts_with_the_other():
    """The farther one of a turned head, say: 0.73 of its rest, where the nearer one is at a third."""
    clip = frames(*OPEN, 5.0, *OPEN)
    clip[20][LEFT_EYE] = face(eyes=11.0)[LEFT_EYE]
    closed = close_blinks(clip, FPS)
    assert lids(closed, RIGHT)[20] < 0.005 and lids(closed, LEFT)[20] < 0.02 * lids(clip, LEFT)[0]


def test_each_blink_is_judged_by_itself():
    """The detector reads shut eyes differently from one blink to the next, by how the head is turned, say."""
    shallow, deep = [11.0, 8.4, 11.0], [9.0, 2.0, 9.0]
    alone, beside = frames(*OPEN, *shallow, *OPEN), frames(*OPEN, *shallow, *OPEN, *deep, *OPEN)
    closed = close_blinks(beside, FPS)
    np.testing.assert_array_equal(closed[:43], close_blinks(alone, FPS))
    assert lids(closed)[[21, 44]].max() < 0.02 * lids(beside)[0]


@pytest.mark.parametrize("way_back", [12.3, 15.0])
@pytest.mark.parametrize("begins", [False, True])
def test_a_clip_that_ends_soon_after_a_blink_has_it_like_a_longer_one(way_back, begins):
    """It may end, or begin, with eyes that are not wholly open."""
    longer = frames(*OPEN, 12.0, 8.4, 12.0, way_back, *OPEN)
    shorter = longer[:24]
    if begins:
        longer, shorter = longer[::-1], shorter[::-1]
    closed, expected = close_blinks(shorter, FPS), close_blinks(longer, FPS)
    expected = expected[-24:] if begins else expected[:24]
    np.testing.assert_allclose(closed, expected)
    assert lids(closed).min() < 0.02 * lids(longer)[0]


def test_both_eyes_of_a_blink_move_alike():
    """Though the detector saw the left one open again first."""
    clip = frames(*OPEN, 7.0, 9.0, *OPEN)
    clip[21][LEFT_EYE] = face(eyes=12.0)[LEFT_EYE]
    closed = close_blinks(clip, FPS)
    right, left = ((lids(closed, pairs) / lids(clip, pairs)[0])[21] for pairs in (RIGHT, LEFT))
    assert left - right < (12 - 9) / 15  # no more unlike than they were seen


def test_gaps_stay_and_nothing_is_needed():
    clip = frames(*OPEN, 6.0, *OPEN)
    clip[3] = clip[30] = None
    closed = close_blinks(clip, FPS)
    assert [points is None for points in closed] == [points is None for points in clip]
    assert opening(closed[20], RIGHT) < 0.01
    assert close_blinks([None, None], FPS) == [None, None] and close_blinks([], FPS) == []


def test_each_shot_has_its_own_and_absolute_motion_none():
    """How far eyes were open in another shot says nothing of a blink."""
    clip = frames(*OPEN, 6.0, *OPEN) + frames(*OPEN, 11.0, *OPEN)
    driving = DrivingMotion(clip, FPS, CropBox(0, 0, 256), shots=((0, 41), (41, 82)))
    asked = {
        motion: lids(adapt_motion(face(), driving, motion, None, 1.0, 0.0)) for motion in ("relative", "absolute")
    }
    assert asked["relative"][20] < 0.02 and asked["relative"][61] > 0.6 * asked["relative"][0]
    np.testing.assert_array_equal(asked["absolute"], lids(clip))


def as_they_come(clip, fps=FPS):
    close = BlinkCloser()
    return [close(points, 1 / fps) for points in clip]


@pytest.mark.parametrize("fps", [8, 25])
@pytest.mark.parametrize("deepest", [1.0, 4.0, 8.2])
def test_a_camera_learns_from_the_first_blink(deepest, fps):
    """It stays as it was seen, and all that follow end shut, as in a clip that has them all."""
    blink = [(deepest + 15) / 2, deepest, (deepest + 15) / 2]
    clip = frames(*OPEN, *blink, *OPEN * 3, *blink, *OPEN)
    closed, second = as_they_come(clip, fps), slice(83, 86)
    for pairs in (RIGHT, LEFT):
        np.testing.assert_array_equal(lids(closed, pairs)[:22], lids(clip, pairs)[:22])
        np.testing.assert_array_equal(lids(closed, pairs)[30:83], lids(clip, pairs)[30:83])  # open ones stay
        assert abs(lids(closed, pairs)[84]) < 0.02 * lids(clip, pairs)[0]
        expected = lids(close_blinks(clip, fps), pairs)
        np.testing.assert_allclose(lids(closed, pairs)[second], expected[second], atol=0.002)


@pytest.mark.parametrize("between", [[11.0], [8.0] * 45, [], [None] * 5], ids=["hardly", "smile", "never", "gone"])
def test_what_is_no_blink_before_a_camera_stays(between):
    clip = [None if eyes is None else face(eyes=eyes) for eyes in (*OPEN, *between, *OPEN)]
    assert all(seen is points for seen, points in zip(as_they_come(clip), clip, strict=True))


def test_a_blink_before_a_camera_need_not_be_as_deep_as_those_before_it():
    """They were 2 and 8: one of 7, which is deeper than most, shuts the eyes."""
    before = [lid for deepest in (2.0, 8.0, 8.0, 8.0) for lid in (*OPEN * 2, deepest)]
    clip = frames(*before, *OPEN * 2, 7.0, *OPEN)
    index = len(before) + 40
    assert lids(as_they_come(clip))[index] < 0.2 * lids(clip)[index]


def test_narrow_eyes_are_not_shut_after_a_blink():
    """Those that stay narrow stay open, only narrower still, and not at once."""
    clip = frames(*OPEN * 4, 6.0, *[11.0] * 50)
    led = (lids(clip) - lids(as_they_come(clip))) / lids(clip)  # how much of each opening is closed
    assert 0.05 < led[-1] < 0.2
    assert led[81] < 0.3 * led[-1] and np.diff(led[81:]).max() < 0.2 * led[-1]


@pytest.mark.parametrize("fps", [25, 17])
def test_a_blink_that_turns_out_to_be_none_lets_go_of_lids_little_by_little(fps):
    """Eyes that come back half the way are taken to go on, but these stay; however the camera's frames come."""
    clip = frames(*OPEN * 4, 9.0, *[12.9] * 60)
    led = lids(clip) - lids(as_they_come(clip, fps))
    assert led.max() > 0.002 and led[-1] < 0.05 * led.max()
    assert np.abs(np.diff(led)).max() < 0.5 * led.max()
