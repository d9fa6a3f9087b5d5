"""Layout, drawing and cropping of landmarks: what training needs, without OpenCV."""

import hashlib
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch

from fsth_hub.landmarks import DETECTORS, DetectorEntry, describe_detectors, get_detector
from fsth_hub.landmarks.pose import MEAN_FACE, Pose
from fsth_hub.models import landmark_drawing
from fsth_hub.models.cropping import (
    CropBox,
    crop_box,
    crop_image,
    crop_repeating_edges,
    reaches_outside,
    share_outside,
    to_crop,
)
from fsth_hub.models.errors import FsthError, NoFaceError
from fsth_hub.models.landmark_drawing import rasterize_landmarks
from fsth_hub.models.landmark_layout import (
    FLIP,
    INNER_LIPS,
    IRISES,
    JAW,
    LEFT_EYE,
    NOSE_BRIDGE,
    NUM_POINTS,
    RIGHT_EYE,
    RIGHT_IRIS,
    eye_opening,
    face_extent,
    interocular,
)
from testing_utils.faces import frontal_face
from testing_utils.paths import ROOT


FRONTAL = np.eye(3)


@pytest.fixture
def points():
    """The mean face, looking straight out of a crop of 256 pixels, its mouth and eyes open."""
    face = Pose(FRONTAL, 0.5, np.array([128.0, 140.0])).project(MEAN_FACE)
    face[[66, 67, 65]] += [0, 6]
    return face.astype(np.float32)


def colour_of(group):
    return next(np.array(colour) for indices, colour, _ in landmark_drawing.LINES if indices is group)


def test_every_point_has_one_place():
    groups = [indices for indices, _, _ in landmark_drawing.LINES] + [iris for _, iris, _ in landmark_drawing.IRISES]
    assert sorted(np.concatenate(groups)) == list(range(NUM_POINTS))


def test_flip_mirrors_the_drawing(points):
    assert (FLIP[FLIP] == np.arange(NUM_POINTS)).all()
    mirrored = points.copy()
    mirrored[:, 0] = 256 - mirrored[:, 0]
    # The mean face is symmetric, so its mirror image is itself, once the points have changed places.
    np.testing.assert_allclose(mirrored[FLIP], points, atol=1e-4)

    points[:, 0] += 0.2 * points[:, 1]  # no longer symmetric
    mirrored[:, 0] = 256 - points[:, 0]
    drawn, of_mirrored = rasterize_landmarks(points, 256), rasterize_landmarks(mirrored[FLIP], 256)[:, ::-1]
    lit = drawn.max(axis=2) > 0
    difference = (drawn.max(axis=2).astype(int) - of_mirrored.max(axis=2)).clip(0)
    assert difference.sum() < 0.05 * drawn.max(axis=2)[lit].sum()


def test_drawing_has_the_colours_at_the_points(points):
    drawn = rasterize_landmarks(points, 256)
    assert drawn.shape == (256, 256, 3) and drawn.dtype == np.uint8
    for group, index in ((JAW, 8), (NOSE_BRIDGE, 28), (RIGHT_EYE, 36), (LEFT_EYE, 45), (INNER_LIPS, 66)):
        x, y = points[index]
        # The end of a line need not cover its pixel altogether.
        np.testing.assert_allclose(drawn[int(y), int(x)], colour_of(group), atol=60, err_msg=f"point {index}")
    for _, iris, colour in landmark_drawing.IRISES:
        x, y = points[iris[0]]
        np.testing.assert_array_equal(drawn[int(y), int(x)], colour)
    assert not drawn[:40].any() and not drawn[230:].any()


def test_line_is_as_wide_as_it_should_be(points):
    points[:] = np.nan
    points[JAW] = np.stack([np.linspace(50, 200, 17), np.full(17, 100)], axis=1)
    for size, width in ((128, 1), (256, 2)):
        column = rasterize_landmarks(points * size / 256, size)[:, size // 2, 0]
        assert column.sum() / 255 == pytest.approx(width, abs=0.3)


def test_drawing_moves_with_less_than_a_pixel(points):
    still, moved = rasterize_landmarks(points, 128), rasterize_landmarks(points + np.float32(0.3), 128)
    assert (still != moved).any()


def test_unknown_points_are_not_drawn(points):
    assert not rasterize_landmarks(np.full((NUM_POINTS, 2), np.nan), 64).any()
    without_irises = points.copy()
    without_irises[IRISES] = np.nan
    drawn = rasterize_landmarks(without_irises, 256)
    x, y = points[RIGHT_IRIS[0]]
    assert not drawn[int(y), int(x)].any()
    assert drawn[int(points[8, 1]), int(points[8, 0])].all()


def test_closed_eye_shows_no_iris(points):
    x, y = points[RIGHT_IRIS[0]]
    around = np.s_[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8, 1]
    assert (rasterize_landmarks(points, 256)[around] > 200).sum() > 20
    points[[37, 38]] = points[[41, 40]] = points[[41, 40]] + [0, 5]  # the lids meet in an arc below the iris
    assert not (rasterize_landmarks(points, 256)[around] > 200).any()


def test_points_beyond_the_border_do_no_harm(points):
    assert rasterize_landmarks(points + np.float32(150), 256).any()
    assert not rasterize_landmarks(points + np.float32(5000), 256).any()


def test_sizes_of_a_face(points):
    assert interocular(points) == pytest.approx(50.2, abs=0.2)
    assert interocular(np.stack([points, points * 2])).tolist() == pytest.approx([50.2, 100.3], abs=0.3)
    assert face_extent(points) == pytest.approx(np.ptp(points[:68], axis=0).max())


def test_opening_of_an_eye_is_the_mean_of_its_lids_in_its_widths(points):
    """10 pixels wide, its lids 2 and 4 apart, and turned; of an array and of a tensor, of one face and of several."""
    points[LEFT_EYE] = np.float32([[0, 0], [3, -1], [7, -2], [10, 0], [7, 2], [3, 1]]) @ [[0.6, 0.8], [-0.8, 0.6]] + 90
    assert eye_opening(points, LEFT_EYE) == pytest.approx(0.3)
    faces = np.stack([points, points])
    faces[1, LEFT_EYE] = 5  # no face has such an eye, but a network's first landmarks may
    assert eye_opening(faces, LEFT_EYE) == pytest.approx([0.3, 0])
    assert eye_opening(torch.from_numpy(faces), LEFT_EYE).tolist() == pytest.approx([0.3, 0])


def test_crop_holds_the_face_where_it_should(points):
    box = crop_box(points)
    assert box.side == pytest.approx(2.27 * face_extent(points), rel=1e-5)
    cropped = to_crop(points, box, 256)
    middle = (cropped[:68].max(axis=0) + cropped[:68].min(axis=0)) / 2
    np.testing.assert_allclose(middle, [128, 0.59 * 256], atol=0.01)


def test_crop_of_a_clip_is_the_median_and_skips_frames_without_a_face(points):
    clip = np.stack([points + shift for shift in (0, 1, 2, 3, 90)])
    assert crop_box(clip) == pytest.approx(crop_box(points + 2))
    clip[0] = np.nan
    assert crop_box(clip) == pytest.approx(crop_box(points + 2.5))
    with pytest.raises(NoFaceError, match="no face"):
        crop_box(np.full((3, NUM_POINTS, 2), np.nan))


def test_crop_and_points_agree():
    image = np.zeros((200, 300, 3), np.uint8)
    image[80:90, 150:160] = 255  # a square whose middle is (155, 85)
    box = CropBox(100.3, 20.6, 120.0)
    cropped = crop_image(image, box, 256)
    assert cropped.shape == (256, 256, 3)
    ys, xs = np.nonzero(cropped[..., 0] > 127)
    found = np.array([xs.mean() + 0.5, ys.mean() + 0.5])
    np.testing.assert_allclose(found, to_crop(np.array([155.0, 85.0]), box, 256), atol=0.3)


def test_beyond_the_border_the_edge_is_repeated_for_training():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30], image[:, 30:] = (200, 10, 20), (30, 220, 40)
    cropped = crop_repeating_edges(image, CropBox(-20, -60, 160), 80)
    assert (cropped[:, :20] == image[0, 0]).all() and (cropped[:, -40:] == image[0, -1]).all()
    assert (crop_repeating_edges(image[..., 0], CropBox(-20, -60, 160), 80) == cropped[..., 0]).all()


BOXES = {
    "top": CropBox(20, -60, 100), "left": CropBox(-70, 20, 100), "right": CropBox(120, 20, 100),
    "bottom": CropBox(20, 120, 100), "corner": CropBox(-50, -50, 120), "all around": CropBox(-80, -80, 340),
    "a little": CropBox(-4, 30, 100),
}  # fmt: skip


@pytest.mark.parametrize("side", BOXES)
def test_beyond_the_border_nothing_goes_on_as_a_streak(side):
    """Of lines that end at the border none is left farther out, and there is no step where the picture ends."""
    image = np.full((180, 180, 3), 90, np.uint8)
    image[5::12], image[6::12], image[:, 5::12], image[:, 6::12] = 250, 250, 250, 250  # none along the border
    box, size = BOXES[side], 256
    cropped = crop_image(image, box, size)
    place = (np.arange(size) + 0.5) * box.side / size
    across = np.maximum(-(box.left + place), box.left + place - 180).clip(0)
    down = np.maximum(-(box.top + place), box.top + place - 180).clip(0)[:, None]
    distance = np.hypot(across, down) / box.side * np.ones((size, 1))
    rough = np.hypot(*np.gradient(cropped.mean(axis=2)))
    assert rough[distance == 0].max() > 20
    if (distance > 0.12).any():
        assert rough[distance > 0.12].max() < 4
    edges_repeated = crop_repeating_edges(image, box, size)
    inside = distance == 0
    assert (cropped[inside] == edges_repeated[inside]).mean() > 0.97
    at_border = (distance > 0) & (distance < 1.5 / size)
    assert abs(cropped[at_border].mean() - edges_repeated[at_border].mean()) < 40
    mean = cropped[distance > 0].mean()
    assert abs(mean - image.mean()) < 30  # neither black nor white


def test_a_square_within_the_picture_is_cut_as_ever():
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    for box in (CropBox(3.3, 4.2, 80), CropBox(0, 0, 90), CropBox(-1.5, 1, 90)):  # the last one but for a hair
        np.testing.assert_array_equal(crop_image(image, box, 64), crop_repeating_edges(image, box, 64))


def test_how_much_lies_outside():
    assert share_outside(CropBox(10, 10, 50), 100, 100) == 0 and not reaches_outside(CropBox(10, 10, 50), 100, 100)
    assert share_outside(CropBox(-25, -25, 50), 100, 100) == 0.75 and reaches_outside(CropBox(-25, -25, 50), 100, 100)
    assert share_outside(CropBox(75, 10, 50), 100, 100) == 0.5 and reaches_outside(CropBox(75, 10, 50), 100, 100)
    assert share_outside(CropBox(10, 60, 50), 100, 100) == pytest.approx(0.2)


@pytest.mark.parametrize("turn", range(4))
def test_a_picture_is_turned_before_it_is_cut(turn):
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    box = CropBox(5, 7, 60)
    lying = np.rot90(image, -turn)
    np.testing.assert_array_equal(crop_image(lying, box._replace(turn=turn), 64), crop_image(image, box, 64))


def test_shrinking_averages():
    image = np.zeros((512, 512, 3), np.uint8)
    image[::2] = 255  # a filter that skips rows would give black or white
    cropped = crop_image(image, CropBox(64, 64, 384), 32)
    assert np.abs(cropped.astype(int) - 127).max() < 12


def test_training_side_needs_neither_opencv_nor_torch():
    code = (
        "import sys; sys.modules.update(cv2=None, torch=None, face_alignment=None)\n"
        "from fsth_hub.models import cropping, landmark_drawing, landmark_layout\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_unknown_detector_names_the_known_ones():
    with pytest.raises(FsthError, match="'dlib'.*'mediapipe' or 'face-alignment'"):
        get_detector("dlib")


def test_a_new_detector_is_one_entry(monkeypatch):
    monkeypatch.setitem(DETECTORS, "counter", DetectorEntry("collections", "Counter", "counts, for a test"))
    assert type(get_detector("counter")).__name__ == "Counter"
    assert describe_detectors().endswith(", counter (counts, for a test)")


def test_models_are_those_of_the_notice():
    lines = (ROOT / "NOTICE").read_text().splitlines()
    files = [ROOT / line for line in lines if line.startswith("fsth_hub/") and "." in line]  # no folders
    sums = [line.split()[1] for line in lines if line.strip().startswith("SHA-256")]
    kinds = ("*.tflite", "*.onnx", "finetuning/weights/*.safetensors")  # those of the model are ours
    carried = {path for kind in kinds for path in (ROOT / "fsth_hub").rglob(kind)}
    assert set(files) == carried and len(files) == 5
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == sums
    carrier = ROOT
    for line in lines:
        if "see LICENSE-" in line:  # lies beside the file that was named last
            assert (carrier.parent / line.partition("see ")[2].rstrip(".")).stat().st_size
        elif line.startswith("fsth_hub/"):
            carrier = ROOT / line
    licences = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license-files"]
    carried = {path for pattern in licences for path in ROOT.glob(pattern)}
    own = {ROOT / name for name in ("LICENSE", "LICENSE-WEIGHTS", "NOTICE")}
    assert carried == own | set((ROOT / "fsth_hub").rglob("LICENSE-*"))


def test_an_eye_as_wide_as_a_house_costs_no_memory():
    """Of a damaged file; what the canvas shows of it is rasterized."""
    points = frontal_face(size=64)[0].numpy()
    points[36:48] *= 6000
    assert rasterize_landmarks(points, 64).shape == (64, 64, 3)
