"""What arrives of an expression, enlarged parts, and the background: known openings, spots and shifts."""

import numpy as np
import pytest
import torch
from PIL import Image

from fsth_hub.landmarks import Face
from fsth_hub.models.landmark_layout import LEFT_EYE, OUTER_LIPS, RIGHT_EYE, interocular
from testing_utils.shards import landmarks
from training.data.dataset import ClipRecord, is_held_out_still
from training.evaluation.background import Background
from training.evaluation.expression import (
    EXPRESSION_KEYS,
    PART_SIZE,
    delivered,
    extreme_frames,
    eye_openings,
    eyes,
    mouth_openings,
    mouths,
)
from training.evaluation.portraits import Motion, PortraitReenactment
from training.evaluation.reenactment import CrossReenactment, Instruments, SelfReenactment


SIZE = 128


def face(eye: float = 0.3, mouth: float = 0.0) -> np.ndarray:
    """A face with these openings, 30 pixels between its eyes."""
    points = landmarks() * 3
    for part in (RIGHT_EYE, LEFT_EYE):
        width = np.linalg.norm(points[part[3]] - points[part[0]])
        middle = points[part[[0, 3]]].mean(axis=0)
        for upper, lower, x in ((1, 5, -0.2), (2, 4, 0.2)):
            points[part[upper]] = middle + width * np.array([x, -eye / 2])
            points[part[lower]] = middle + width * np.array([x, eye / 2])
    points[66] = points[62] + [0, mouth * interocular(points)]
    return points.astype(np.float32)


def test_openings_are_those_of_the_face_however_it_lies():
    points = np.stack([face(0.3, 0.1), face(0.05, 0.4)])
    turn = np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32)
    for seen in (points, 2 * points @ turn):
        assert eye_openings(seen) == pytest.approx([0.3, 0.05], abs=1e-3)
        assert mouth_openings(seen) == pytest.approx([0.1, 0.4], abs=1e-3)


def test_extremes_are_closed_eyes_and_open_mouths():
    clip = np.stack([face()] * 5 + [face(eye=0.1)] * 6 + [face()] * 5 + [face(mouth=0.3)] * 6)
    assert extreme_frames(clip) == [*range(5, 11), *range(16, 22)]
    assert extreme_frames(clip[:2]) == [0, 1]


def test_slope_correlation_and_blink_of_what_is_half_delivered():
    openings = [0.3] * 20 + [0.1, 0.06, 0.08]
    asked = [face(eye, mouth) for eye, mouth in zip(openings, np.linspace(0, 0.4, 23), strict=True)]
    # eyes come half of the way from rest, mouths open by a quarter
    seen = [
        face(0.3 + (eye - 0.3) / 2, mouth / 4) for eye, mouth in zip(openings, np.linspace(0, 0.4, 23), strict=True)
    ]
    measured = delivered(asked, seen, rest=0.3)
    assert tuple(measured) == EXPRESSION_KEYS
    assert measured["mouth_slope"] == pytest.approx(0.25, abs=1e-3)
    assert (measured["eyes_slope"], measured["blink"]) == pytest.approx((0.5, 0.5), abs=1e-3)
    assert (measured["mouth_corr"], measured["eyes_corr"]) == pytest.approx((1, 1), abs=1e-4)
    # frames without a face do not count
    assert delivered([face(0.9, 0.9), *asked], [None, *seen], rest=0.3) == measured
    # an eye that stays wide open does not close at all, and one that opens instead goes the wrong way
    still = delivered(asked, [face(0.3, 0.1)] * 23, rest=0.3)
    assert (still["blink"], still["eyes_slope"]) == pytest.approx((0, 0), abs=1e-3) and still["eyes_corr"] is None
    assert delivered(asked, [face(0.4)] * 23, rest=0.3)["blink"] < -0.2


def test_where_hardly_anything_is_asked_there_is_no_slope():
    asked = [face(0.3 + 0.005 * (-1) ** index, 0.3 * (index % 2)) for index in range(10)]
    measured = delivered(asked, asked, rest=0.3)
    assert measured["mouth_slope"] == pytest.approx(1) and measured["eyes_slope"] is measured["blink"] is None
    assert set(delivered(asked, [None] * 8 + asked[8:], rest=0.3).values()) == {None}  # two frames tell nothing


def spots(places: np.ndarray, radius: float) -> torch.Tensor:
    """White spots on black, 1 x 3 x SIZE x SIZE; places in pixels."""
    ys, xs = np.mgrid[:SIZE, :SIZE] + 0.5
    nearest = np.min([np.hypot(xs - x, ys - y) for x, y in places], axis=0)
    return torch.from_numpy(np.where(nearest < radius, 1.0, -1.0)).float().expand(1, 3, SIZE, SIZE)


@pytest.mark.parametrize("degrees", [0, 25, -40])
def test_parts_are_level_centred_and_as_large_as_they_should_be(degrees):
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # of row vectors
    points = ((face() - face().mean(axis=0)) @ turn + SIZE / 2).astype(np.float32)
    tensor, between = torch.from_numpy(points)[None], float(interocular(points))
    offset = np.array([0.25, 0.1]) @ turn * between  # right and down on the level face
    for crop, parts, side in ((mouths, [OUTER_LIPS], 1.3), (eyes, [RIGHT_EYE, LEFT_EYE], 0.75)):
        for number, part in enumerate(parts):
            centre = points[part].mean(axis=0)
            shown = crop(spots([centre + side * offset], 3), tensor)[number, 0]
            assert shown.shape == (PART_SIZE, PART_SIZE)
            ys, xs = np.mgrid[:PART_SIZE, :PART_SIZE] + 0.5
            weight = (shown.numpy() + 1) / 2
            place = (xs * weight).sum() / weight.sum(), (ys * weight).sum() / weight.sum()
            assert place == pytest.approx((0.75 * PART_SIZE, 0.6 * PART_SIZE), abs=2)


def scene(shift: float = 0.0, head: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A textured background `shift` pixels to the right and a white head `head` pixels to the right."""
    ys, xs = np.mgrid[:SIZE, :SIZE].astype(float)
    x = xs - shift
    pattern = np.sin(x / 3.1) + np.sin(ys / 2.7 + x / 9) + np.sin((x + ys) / 5.3)
    picture = np.clip(128 + 35 * pattern, 0, 255)
    points = landmarks()[:, :] * 2 + [head, 0]
    middle = points[:68].mean(axis=0)
    picture[np.hypot(xs - middle[0], ys - middle[1]) < 22] = 255
    return np.repeat(picture.astype(np.uint8)[..., None], 3, axis=2), points.astype(np.float32)


def test_swim_is_how_far_a_resting_background_moves():
    frames, points = zip(*(scene(head=3 * index) for index in range(3)), strict=True)
    background = Background(list(frames), np.stack(points))
    assert all(0.2 < still.mean() < 0.9 for still in background.still)
    assert background.swim(list(frames)) < 0.1  # the moving head does not count
    assert background.swim([frames[0]] * 3) == 0
    swimming = [scene(shift=1.5 * index, head=3 * index)[0] for index in range(3)]
    assert background.swim(swimming) == pytest.approx(1.5, abs=0.15)
    assert background.swim([swimming[0], swimming[1], swimming[1]]) == pytest.approx(0.75, abs=0.1)


def test_a_background_that_moves_or_shows_nothing_has_no_swim():
    frames, points = zip(*(scene(shift=2 * index) for index in range(2)), strict=True)
    assert Background(list(frames), np.stack(points)).swim([frames[0]] * 2) is None
    plain = np.full_like(frames[0], 90)
    assert Background([plain, plain], np.stack(points)).swim(list(frames)) is None
    assert Background([frames[0]], points[0][None]).swim([frames[0]]) is None  # a single frame


def test_one_still_of_fifty_is_held_out():
    assert [index for index in range(120) if is_held_out_still(f"stills/crops/{index:05d}.jpg")] == [0, 50, 100]


class Seer:
    """Draws frames that show nothing but their number, and sees half of the movement that each was to show."""

    def __init__(self):
        self.asked = []

    def draw(self, points: np.ndarray) -> np.ndarray:
        self.asked.append(points)
        return np.full((SIZE, SIZE, 3), len(self.asked), np.uint8)

    def detect(self, image: np.ndarray) -> list[Face]:
        number = int(image[0, 0, 0])
        if number == 0:  # a true frame
            return [Face(face(), 1.0)]
        return [Face((self.asked[number - 1] + face()) / 2, 1.0)]


def clip_of(identity: str) -> ClipRecord:
    """Eyes that blink once in either half and a mouth that opens at the end of each."""
    openings = [(0.3, 0.0)] * 8 + [(0.05, 0.0)] * 3 + [(0.3, 0.1), (0.3, 0.2), (0.3, 0.3), (0.3, 0.4)]
    points = np.stack([face(*pair) for pair in openings * 2])
    clip = ClipRecord(identity, identity, None, [(0, 0)] * len(points), points, [], [])
    clip.image = lambda index: Image.new("RGB", (SIZE, SIZE))
    return clip


@pytest.mark.parametrize("kind", ["self", "cross", "portraits"])
def test_tasks_measure_the_expression_over_frames_that_show_one(kind):
    seer = Seer()
    instruments = Instruments(lambda a, b: torch.zeros(len(a)), lambda image, points: np.array([1.0, 0.0]), seer)
    if kind == "self":
        task = SelfReenactment(clip_of("ann"), 2, instruments)
        extremes = task.extras[: task.num_extremes]
        assert len(task.targets) == 2 and len(extremes) == 8
        assert sorted(mouth_openings(extremes))[-3:] == pytest.approx([0.1, 0.2, 0.3], abs=1e-3)  # 0.4 is there
        assert sorted(eye_openings(extremes))[:4] == pytest.approx([0.05, 0.05, 0.05, 0.3], abs=1e-3)
    elif kind == "cross":
        task = CrossReenactment(clip_of("ann"), [clip_of("bob"), clip_of("cid")], 4, instruments)
        assert len(task.targets) == 4 and len(task.extras) > 12
    else:
        landmarks = clip_of("bob").landmarks
        motion = Motion([None, *landmarks], [None, *(landmarks + face()) / 2])
        task = PortraitReenactment(np.zeros((SIZE, SIZE, 3), np.uint8), face(), [motion], instruments)
        assert len(task.targets) > 12 and len(task.extras) == 0
        assert mouth_openings(task.targets[task.shown[0]]) == pytest.approx(0.4, abs=0.02)
        assert eye_openings(task.targets[task.shown[1]]) == pytest.approx(0.05, abs=0.02)
    drawn, extras = ([seer.draw(points) for points in group] for group in (task.targets, task.extras))
    measured = task.measure(drawn, extras)
    assert measured["frames"] == len(drawn) and task.rest == pytest.approx(0.3, abs=0.01)
    for key in ("mouth_slope", "eyes_slope", "blink"):
        assert measured[key] == pytest.approx(0.5, abs=0.02)
    if kind == "portraits":  # a detector that sees half of the driver's movement
        driver = task.measure_driver()
        assert driver["frames"] == len(drawn) and "csim" not in driver
        assert [driver[key] for key in ("mouth_slope", "eyes_slope", "blink")] == pytest.approx([0.5] * 3, abs=0.02)
