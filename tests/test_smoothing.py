"""Landmarks without their detector's tremble."""

import numpy as np
import pytest

from fsth_hub.landmarks import LandmarkSmoother, smooth_clip, smooth_shots
from fsth_hub.models.errors import FsthError
from fsth_hub.models.landmark_layout import FACE, IRISES, interocular
from testing_utils.faces import EYE, face, opening


FPS = 25


def tremble(frames) -> float:
    """Mean acceleration of the points, distances between the eyes per frame squared."""
    return np.linalg.norm(np.diff(frames, n=2, axis=0), axis=-1).mean() / interocular(frames[0])


def trembling(frames, amount=0.3):
    """Each frame with a detector's error: of the whole head, and of every point, pixels."""
    random = np.random.default_rng(0)
    return [
        (points + random.normal(0, amount, 2) + random.normal(0, amount / 2, points.shape)).astype(np.float32)
        for points in frames
    ]


def live(frames, seconds=0.05):
    smooth = LandmarkSmoother(seconds)
    return [smooth(points, 1 / FPS) for points in frames]


def test_resting_head_is_quiet():
    still = trembling([face()] * 50)
    assert tremble(smooth_clip(still, FPS)) < 0.4 * tremble(still)
    assert tremble(live(still)) < 0.6 * tremble(still)
    assert np.abs(np.mean(smooth_clip(still, FPS), axis=0) - np.mean(still, axis=0)).max() < 0.15


def test_blink_is_not_rounded_off_and_keeps_its_time():
    lids = [15.0] * 10 + [8.0, 0.0, 0.0, 8.0] + [15.0] * 10
    frames = trembling([face(eyes=eyes) for eyes in lids], 0.1)
    found = np.array([opening(points, EYE) for points in frames])
    for smoothed in (smooth_clip(frames, FPS), live(frames)):
        seen = np.array([opening(points, EYE) for points in smoothed])
        assert np.ptp(seen) > 0.9 * np.ptp(found)
        assert seen.argmin() in (11, 12) and abs(seen[10] - found[10]) < 0.3 * np.ptp(found)


def test_clip_does_not_lag_behind_a_moving_head():
    places = 128 + 20 * np.sin(np.arange(60) / 6)
    frames = [face(centre=(x, 140.0)) for x in places]
    late, timely = (np.array(f)[:, FACE, 0].mean(axis=1) for f in (live(frames), smooth_clip(frames, FPS)))
    middle = slice(10, -10)
    found = np.array(frames)[:, FACE, 0].mean(axis=1)
    assert np.abs(timely - found)[middle].max() < 0.6 * np.abs(late - found)[middle].max()
    assert np.abs(timely - found)[middle].max() < 1.2


def test_gaps_and_cuts_are_not_smoothed_across():
    left, right = [face(centre=(100.0, 140.0))] * 5, [face(centre=(160.0, 140.0))] * 5
    for frames in ([*left, None, *right], [*left, *right]):
        for smoothed in (smooth_clip(frames, FPS), live(frames)):
            for before, after in zip(frames, smoothed, strict=True):
                assert (before is None) == (after is None)
                assert before is None or np.allclose(before, after, atol=1e-3)


def test_shots_are_smoothed_each_by_itself():
    """A cut to nearly the same place, over which a clip that is all one would be smoothed."""
    one, two = trembling([face()] * 8), trembling([face(centre=(130.0, 141.0))] * 6)
    apart = smooth_shots([*one, *two], FPS, shots=[(0, 8), (8, 14)])
    np.testing.assert_array_equal(apart, [*smooth_clip(one, FPS), *smooth_clip(two, FPS)])
    across = smooth_shots([*one, *two], FPS)
    np.testing.assert_array_equal(across, smooth_clip([*one, *two], FPS))
    assert np.abs(across[7] - apart[7]).max() > 0.05


def test_a_shot_without_a_face_stays_without():
    smooth = smooth_shots([face(), None, None, face()], FPS, shots=[(0, 1), (1, 3), (3, 4)])
    assert [points is None for points in smooth] == [False, True, True, False]


def test_size_of_the_face_does_not_matter():
    frames = trembling([face(yaw=3 * np.sin(i), mouth=10 + 5 * np.cos(i)) for i in range(20)])
    large = [3 * points + 40 for points in frames]
    np.testing.assert_allclose(smooth_clip(large, FPS), 3 * np.array(smooth_clip(frames, FPS)) + 40, atol=0.02)


def test_irises_that_come_and_go():
    frames = trembling([face()] * 9)
    for index in (0, 1, 5):
        frames[index][IRISES] = np.nan
    smoothed = np.array(smooth_clip(frames, FPS))
    np.testing.assert_array_equal(np.isnan(smoothed), np.isnan(frames))


def test_no_smoothing_leaves_the_landmarks():
    frames = [face(), None, face(yaw=3)]
    assert all(a is b for a, b in zip(smooth_clip(frames, FPS, 0), frames, strict=True))


@pytest.mark.parametrize("seconds", [-0.1, 1.5, float("nan")])
def test_bad_smoothing(seconds):
    with pytest.raises(FsthError, match="smoothing, in seconds, must be a number from 0 to 1, not"):
        smooth_clip([face()], FPS, seconds)
    with pytest.raises(FsthError, match="smoothing, in seconds, must be a number from 0 to 1, not"):
        LandmarkSmoother(seconds)
