"""The head put back into its photograph, and pictures side by side."""

import weakref

import numpy as np
import pytest
from PIL import Image

from fsth_hub.media.paste_back import FEATHER, FLOW_SIZE, PasteBack
from fsth_hub.models.cropping import CropBox, crop_image
from fsth_hub.models.errors import FsthError
from fsth_hub.pipelines.driving import DrivingMotion
from fsth_hub.pipelines.side_by_side import MAX_HEIGHT, side_by_side
from testing_utils.faces import face


WHITE = np.full((64, 64, 3), 255, np.uint8)
BOX = CropBox(30.4, 20.7, 100.0)


def black(height, width):
    return np.zeros((height, width, 3), np.uint8)


def test_frame_lands_where_it_was_cut_out(astronaut):
    box = CropBox(120.3, 10.6, 220.0)
    result = PasteBack(astronaut, box)(crop_image(astronaut, box, 256))
    assert np.abs(result.astype(int) - astronaut).mean() < 1
    shifted = PasteBack(astronaut, CropBox(124.3, 10.6, 220.0))(crop_image(astronaut, box, 256))
    assert np.abs(shifted.astype(int) - astronaut).mean() > 1.5


def test_border_is_the_photographs_and_the_middle_the_frames():
    result = PasteBack(black(160, 180), BOX)(WHITE)
    covered = result[..., 0] > 0
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    assert 20 <= rows[0] and rows[-1] <= 120 and 30 <= columns[0] and columns[-1] <= 130
    assert (result[27:114, 37:124] == 255).all()  # what the feather leaves
    # softly: no step from one pixel to the next is an edge, and the outermost is hardly seen
    line = result[70, :, 0].astype(int)
    assert line[30] < 5 and line[31] < 40 and np.abs(np.diff(line)).max() < 1.6 * 255 / (FEATHER * BOX.side)


def test_moved_shoulders_are_led_back_to_the_photograph(astronaut):
    box = CropBox(120.0, 10.0, 256.0)
    moved = np.roll(crop_image(astronaut, box, 256), 8, axis=1)  # 8 pixels to the right
    result = PasteBack(astronaut, box)(moved).astype(int)
    above, below = slice(10 + 30, 10 + 150), slice(10 + 225, 10 + 240)
    inside = slice(120 + 40, 120 + 216)
    there = np.roll(astronaut, 8, axis=1).astype(int)
    assert np.abs(result - there)[above, inside].mean() < 1 < 5 < np.abs(astronaut - there)[below, inside].mean()
    assert np.abs(result - astronaut)[below, inside].mean() < 0.4 * np.abs(astronaut - there)[below, inside].mean()


def test_large_frames_are_led_back_by_the_flow_of_small_ones(astronaut):
    """So it takes no longer, and gives the same."""
    large = np.asarray(Image.fromarray(astronaut).resize((2048, 2048), Image.Resampling.BICUBIC))[:1080, :1920]
    results = []
    for photograph, box in ((astronaut, CropBox(120.0, 10.0, 256.0)), (large, CropBox(480.0, 40.0, 1024.0))):
        side = round(box.side)
        moved = np.roll(crop_image(photograph, box, side), side // 32, axis=1)
        paste = PasteBack(photograph, box)
        head = paste(moved)[round(box.top) :, round(box.left) :][:side, :side]
        assert paste.still.shape == (FLOW_SIZE, FLOW_SIZE)
        results.append(np.asarray(Image.fromarray(head).resize((256, 256), Image.Resampling.BOX)).astype(int))
    below = slice(225, 240), slice(40, 216)
    assert np.abs(results[0] - results[1]).mean() < 1.5
    assert np.abs(results[0] - results[1])[below].mean() < 3


@pytest.mark.parametrize("side", [416, 512])
def test_nothing_is_lost_that_the_canvas_can_show(side):
    """A frame of about the head's size there keeps fine detail; one of 256 pixels cannot."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    photograph = np.asarray(Image.fromarray(noise).resize((600, 600), Image.Resampling.BICUBIC))
    box = CropBox(80.3, 60.6, 417.3)

    def loss(side):
        result = PasteBack(photograph, box)(crop_image(photograph, box, side)).astype(int)
        return np.abs(result - photograph)[100:360, 120:460].mean()  # above what is led back

    assert loss(side) < 4 < 12 < loss(256)


def test_no_feather_where_the_square_reaches_beyond_the_photograph():
    result = PasteBack(black(100, 120), CropBox(-10, -5, 90))(WHITE)
    assert (result[:70, :60] == 255).all()
    assert (result[85:] == 0).all() and (result[:, 80:] == 0).all()
    whole = PasteBack(black(64, 64), CropBox(0, 0, 64))(WHITE)
    assert (whole == 255).all()


@pytest.mark.parametrize(
    "size, expected",
    [((101, 75), (100, 74)), ((3000, 2000), (1620, 1080)), ((1000, 4000), (480, 1920)), ((1080, 1920), (1080, 1920))],
)
def test_large_and_odd_photographs(size, expected):
    width, height = size
    paste = PasteBack(black(height, width), CropBox(width / 4, height / 4, min(size) / 2))
    result = paste(WHITE)
    assert result.shape == (expected[1], expected[0], 3)
    lit = np.argwhere(result[..., 0] > 127)
    scale = expected[0] / width if max(size) > 1920 else 1
    centre = scale * (np.array([height, width]) / 4 + min(size) / 4)
    assert np.allclose(lit.mean(axis=0) + 0.5, centre, atol=1)


def test_photograph_is_left_as_it_is():
    photograph = black(160, 180)
    paste = PasteBack(Image.fromarray(photograph), BOX)
    first, dark = paste(WHITE), paste(black(64, 64))
    assert first.any() and not dark.any() and not paste.photograph.any()


def test_square_outside_the_photograph():
    with pytest.raises(FsthError, match="outside the photograph"):
        PasteBack(black(50, 50), CropBox(60, 0, 20))


def driver_and_motion(count=3, gone=()):
    clip = [np.full((90, 160, 3), 20 * index, np.uint8) for index in range(count)]
    landmarks = [None if index in gone else face(scale=0.3, centre=(64.0, 70.0)) for index in range(count)]
    return clip, DrivingMotion(landmarks, 25.0, CropBox(40, 0, 80), None)


def test_side_by_side_is_portrait_driver_result():
    clip, motion = driver_and_motion(gone=[2])
    frames = [np.full((128, 128, 3), 200 + index, np.uint8) for index in range(3)]
    rows = list(side_by_side(np.full((50, 101, 3), 90, np.uint8), clip, motion, frames, size=128))
    assert [row.shape for row in rows] == [(128, 258 + 128 + 128, 3)] * 3
    for index, row in enumerate(rows):
        assert (row[:, :258] == 90).all() and (row[:, -128:] == 200 + index).all()
        driver = row[:, 258:386].astype(int)
        drawn = np.abs(driver - 20 * index).max(axis=2) > 40
        assert (driver[:10] == 20 * index).all() and drawn.any() == (index != 2)
    # the landmarks lie where the driver's face is
    lines = np.argwhere(np.abs(rows[0][:, 258:386].astype(int)).max(axis=2) > 40)
    points = motion.landmarks[0]
    assert np.allclose(lines.min(axis=0)[::-1], points.min(axis=0), atol=3)
    assert np.allclose(lines.max(axis=0)[::-1], points.max(axis=0), atol=3)


@pytest.mark.parametrize("side, height", [(64, 64), (150, 150), (301, 300), (1024, MAX_HEIGHT)])
def test_side_by_side_of_any_size(side, height):
    """The three as high as the frames, if that is not too high, and the landmarks where the driver's face is."""
    clip, motion = driver_and_motion(count=1)
    frames = [np.full((side, side, 3), 200, np.uint8)]
    (row,) = side_by_side(np.full((side, side, 3), 90, np.uint8), clip, motion, frames, size=128)
    assert row.shape == (height, 3 * height, 3)
    assert (row[:, :height] == 90).all() and (row[:, -height:] == 200).all()
    lines = np.argwhere(row[:, height:-height].max(axis=2) > 40)[:, ::-1]
    points = motion.landmarks[0] * (height / 128)
    assert np.allclose(lines.min(axis=0), points.min(axis=0), atol=3 + height / 60)
    assert np.allclose(lines.max(axis=0), points.max(axis=0), atol=3 + height / 60)


def test_side_by_side_takes_frames_as_they_come():
    clip, motion = driver_and_motion()
    alive = []

    def frames():
        for _ in clip:
            frame = np.zeros((64, 64, 3), np.uint8)
            alive.append(weakref.ref(frame))
            assert sum(reference() is not None for reference in alive) < 3
            yield frame

    rows = side_by_side(black(64, 64), clip, motion, frames(), size=128, height=33)
    assert not alive
    assert next(rows).shape[0] == 32 and len(alive) == 1
    assert len(list(rows)) == 2
