"""Flicker of generated clips: a face that moves steadily, and what is done to it."""

import numpy as np
import pytest
import torch
from PIL import Image

from fsth_hub.models.landmark_layout import OUTER_LIPS
from testing_utils.shards import landmarks
from training.data.dataset import ClipRecord
from training.evaluation.flicker import NUM_SUCCESSIVE, Flicker, liveliest_run
from training.evaluation.reenactment import Instruments, SelfReenactment


SIZE = 128
SPEED = 1.5  # pixels from frame to frame
KEYS = ["face_flicker", "mouth_flicker", "eyes_flicker"]


def texture(shift: float, colours: float = 1.0) -> np.ndarray:
    """A pattern so many pixels to the right, SIZE x SIZE x 3."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    x -= shift
    pattern = np.sin(x / 3.1) + np.sin(y / 2.7 + x / 9) + np.sin((x + y) / 5.3)
    return np.repeat((128 + 30 * colours * pattern).astype(np.uint8)[..., None], 3, axis=2)


def face(shift: float) -> np.ndarray:
    return (2 * landmarks() + [shift, 0]).astype(np.float32)


SHIFTS = SPEED * np.arange(5)
TRUE = [texture(shift) for shift in SHIFTS]
POINTS = np.stack([face(shift) for shift in SHIFTS])


@pytest.fixture(scope="module")
def flicker() -> Flicker:
    return Flicker(TRUE, POINTS)


def with_mouth(frames: list[np.ndarray], offsets) -> list[np.ndarray]:
    """Frames in which the mouth is drawn so many pixels lower."""
    moved = []
    for frame, points, offset in zip(frames, POINTS, offsets, strict=True):
        left, top = points[OUTER_LIPS].min(axis=0).astype(int) - 2
        right, bottom = points[OUTER_LIPS].max(axis=0).astype(int) + 2
        moved.append(frame.copy())
        moved[-1][top:bottom, left:right] = np.roll(frame, offset, axis=0)[top:bottom, left:right]
    return moved


def alternating(amount: int) -> list[np.ndarray]:
    return [np.uint8(frame.astype(int) + amount * (-1) ** index) for index, frame in enumerate(TRUE)]


def test_what_moves_as_the_truth_does_is_steady(flicker):
    assert all(0 < error < 1 for error in flicker.true.values())  # of a flow between pixels
    assert list(flicker.excess(TRUE).values()) == [0, 0, 0] and list(flicker.excess(TRUE)) == KEYS
    darker = [np.uint8(frame * 0.9) for frame in TRUE]  # looks are not what is measured
    assert all(abs(value) < 0.2 for value in flicker.excess(darker).values())
    plain = [np.full_like(TRUE[0], 90)] * len(TRUE)
    assert flicker.excess(plain) == pytest.approx({f"{part}_flicker": -own for part, own in flicker.true.items()})


def test_brightness_that_alternates_flickers_by_twice_its_amplitude(flicker):
    for amount in (2, 5, 10):
        for part, own in flicker.true.items():
            # independent of what the truth has: squares add up
            expected = np.hypot(2 * amount, own) - own
            assert flicker.excess(alternating(amount))[f"{part}_flicker"] == pytest.approx(expected, rel=0.02)


def test_a_mouth_that_jitters_flickers_the_more_the_further_and_the_eyes_do_not(flicker):
    measured = [flicker.excess(with_mouth(TRUE, [0, step, 0, step, 0])) for step in (0, 1, 2, 3)]
    mouth, face, eyes = ([values[f"{part}_flicker"] for values in measured] for part in ("mouth", "face", "eyes"))
    assert mouth[0] == 0 and (np.diff(mouth) > 1.5).all() and (np.diff(face) > 0.5).all()
    assert eyes == pytest.approx([0] * 4, abs=1e-3) and (np.array(mouth[1:]) > 1.5 * np.array(face[1:])).all()
    resting = flicker.excess(with_mouth(TRUE, [3] * 5))  # elsewhere, but always there
    assert resting["mouth_flicker"] < mouth[3] / 3


def test_a_face_that_stays_where_the_true_one_moves_is_not_steady(flicker):
    assert min(flicker.excess([TRUE[0]] * len(TRUE)).values()) > 10


def test_what_the_next_frame_hides_does_not_count():
    frames = [texture(0) for _ in TRUE]
    for index, frame in enumerate(frames):  # something dark comes from the right
        frame[40:90, 70 - 6 * index :] = texture(-6 * index)[40:90, 70 - 6 * index :] // 3
    seen = Flicker(frames, POINTS).seen
    for index, each in enumerate(seen):
        edge = 70 - 6 * index
        assert each[45:85, edge - 6 : edge].mean() < 0.2 and each[:30].all() and each[45:85, 80:120].all()


def test_one_frame_has_no_flicker():
    assert Flicker(TRUE[:1], POINTS[:1]).excess(TRUE[:1]) == dict.fromkeys(KEYS)


def test_liveliest_run_moves_most_and_is_not_drawn_to_a_cut():
    def walk(steps) -> np.ndarray:
        return np.stack([face(shift) for shift in np.cumsum(steps)])

    steps = np.full(40, 0.1)
    steps[20:31] = 1.0
    assert liveliest_run(walk(steps)) == list(range(19, 19 + NUM_SUCCESSIVE))
    steps[[5, 6]] = 50.0
    assert liveliest_run(walk(steps)) == list(range(19, 19 + NUM_SUCCESSIVE))
    assert liveliest_run(walk(steps[:7])) == list(range(7)) and liveliest_run(walk(steps[:1])) == [0]


@pytest.mark.parametrize("num_frames", [3, 50])
def test_self_reenactment_measures_successive_frames_and_generates_none_twice(num_frames):
    shifts = np.r_[np.zeros(30), np.arange(30)] * 0.5
    points = np.stack([face(shift) for shift in shifts])
    clip = ClipRecord("ann", "ann", None, [(0, 0)] * len(points), points, [], [])
    clip.image = lambda index: Image.fromarray(texture(shifts[index]))
    asked = []

    class Blind:
        def detect(self, image):
            return []

    def generate(points, unsteady):
        """The frame of these landmarks, or one that is brighter every other time."""
        asked.append(float(points[0, 0]))
        shift = points[0, 0] - face(0)[0, 0]
        return np.uint8(texture(shift) + unsteady * (round(2 * shift) % 2))

    lpips, identity = lambda a, b: torch.zeros(len(a)), lambda image, points: np.array([1.0, 0.0])
    task = SelfReenactment(clip, num_frames, Instruments(lpips, identity, Blind()))
    assert len(task.successive) == NUM_SUCCESSIVE and (np.diff(task.successive) == 1).all()
    assert task.successive[0] >= 30
    found = []
    for unsteady in (0, 20):
        asked.clear()
        drawn, extras = ([generate(each, unsteady) for each in group] for group in (task.targets, task.extras))
        assert len(asked) == len(set(asked)) and len(asked) <= 30
        measured = task.measure(drawn, extras)
        found.append([measured[key] for key in KEYS])
    assert found[0] == pytest.approx([0] * 3, abs=0.1) and min(found[1]) > 15
