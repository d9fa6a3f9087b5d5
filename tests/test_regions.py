"""Some regions of a face move, and the others rest; loops."""

import numpy as np
import pytest

from fsth_hub.landmarks.looping import close_loop
from fsth_hub.landmarks.pose import Pose
from fsth_hub.landmarks.regions import REGIONS, Change, check_regions, keep_regions, mix_regions
from fsth_hub.models.errors import FsthError
from fsth_hub.models.landmark_layout import INNER_LIPS, LEFT_BROW, LEFT_EYE, LEFT_IRIS, RIGHT_BROW, interocular
from testing_utils.faces import EYE, MOUTH, face, opening, turn


CALM = face()
ACTIVE = face(yaw=8, roll=3, mouth=20, eyes=6.0, gaze=5, centre=(132.0, 138.0), scale=0.52)


def raised(points: np.ndarray) -> np.ndarray:
    """The same face with its brows up by 10 units."""
    pose = Pose.of(points)
    upright = pose.lift(points)
    upright[np.r_[RIGHT_BROW, LEFT_BROW], 1] -= 10
    return pose.project(upright).astype(np.float32)


def state(points: np.ndarray) -> dict[str, float]:
    pose = Pose.of(points)
    upright = pose.lift(points)
    eye = upright[LEFT_EYE[[0, 3]], 0].mean()
    return {
        "head": np.degrees(np.arcsin(-pose.rotation[2, 0])),
        "brows": upright[LEFT_BROW, 1].mean(),
        "eyes": 100 * opening(points, EYE),
        "gaze": upright[LEFT_IRIS[0], 0] - eye,
        "mouth": 100 * opening(points, MOUTH),
    }


@pytest.mark.parametrize("regions", [(name,) for name in REGIONS] + [("eyes", "mouth"), ("head", "gaze")], ids=str)
def test_a_region_moves_alone(regions):
    driver = raised(ACTIVE)
    calm, active, kept = (state(points) for points in (CALM, driver, keep_regions(driver, CALM, regions)))
    assert all(abs(active[name] - calm[name]) > 3 for name in REGIONS)
    for name in REGIONS:
        expected = active[name] if name in regions else calm[name]
        assert kept[name] == pytest.approx(expected, abs=0.8), name


def test_all_regions_are_the_driver_itself():
    assert keep_regions(ACTIVE, CALM, REGIONS) is ACTIVE
    own, still = Change.of(ACTIVE, CALM), Change.of(CALM, CALM)
    np.testing.assert_allclose(mix_regions(CALM, own, still, ("gaze",))[:68], ACTIVE[:68], atol=0.01)
    np.testing.assert_allclose(mix_regions(CALM, still, own, REGIONS), ACTIVE, atol=0.01)


def test_a_driver_without_irises_keeps_none():
    driver = ACTIVE.copy()
    driver[68:] = np.nan
    kept = keep_regions(driver, CALM, ("eyes", "mouth"))
    assert np.isfinite(kept[:68]).all()
    np.testing.assert_allclose(kept[INNER_LIPS], keep_regions(ACTIVE, CALM, ("mouth",))[INNER_LIPS], atol=0.01)


def test_regions_are_refused_in_a_sentence():
    assert check_regions(["mouth", "head"]) == ("head", "mouth") and check_regions("gaze") == ("gaze",)
    refused = {"nose": "There is no region 'nose'; there are: head, brows", (): "Give at least one", 3: "no region 3"}
    for regions, sentence in refused.items():
        with pytest.raises(FsthError, match=sentence):
            check_regions(regions)


# Loops.


def nodding(period: float, count: int, fps: float = 25) -> list[np.ndarray]:
    """Frames of a head that nods and drifts a little."""
    times = np.arange(count) / fps
    return [face(pitch=8 * np.sin(2 * np.pi * t / period), centre=(128 + 0.4 * t, 140.0)) for t in times]


def steps(frames) -> np.ndarray:
    """How far any point goes from each frame to the next, and from the last to the first, in eye distances."""
    points = np.stack([*frames, frames[0]])
    return np.linalg.norm(np.diff(points, axis=0), axis=2).max(axis=1) / interocular(points[0])


def test_a_loop_has_no_seam():
    frames = nodding(period=1.6, count=90)
    loop = close_loop(frames, 25)
    assert len(loop) == pytest.approx(40 * round(len(loop) / 40), abs=1) and len(loop) >= 45  # whole nods
    assert steps(loop)[-1] <= steps(frames)[:-1].max() * 1.05 and steps(frames)[-1] > 0.02
    assert np.array_equal(loop[0], frames[next(i for i, f in enumerate(frames) if np.array_equal(f, loop[0]))])


def test_what_never_comes_back_goes_back_and_forth():
    frames = [face(yaw=float(angle)) for angle in np.linspace(-20, 20, 60)]
    loop = close_loop(frames, 25)
    assert len(loop) == 118 and np.array_equal(loop[61], frames[57])
    assert steps(loop).max() <= steps(frames)[:-1].max() + 1e-6


def test_short_ones_and_gaps():
    frames = nodding(1.6, 5)
    assert len(close_loop(frames, 25)) == 8 and len(close_loop(frames[:1], 25)) == 1
    frames = nodding(1.6, 90)
    loop = close_loop([None, None, *frames[:30], None, *frames[31:]], 25)
    assert all(points is not None and np.isfinite(points).all() for points in loop)
    assert steps(loop)[-1] < 0.05


def test_turn_is_told_as_it_is_made():
    assert state(Pose(turn(yaw=8), 0.5, np.array([128.0, 140.0])).project(Pose.of(CALM).lift(CALM)))["head"] == (
        pytest.approx(state(face(yaw=8))["head"], abs=0.01)
    )
