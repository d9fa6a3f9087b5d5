"""Pictures that lie or stand on their head, and what is no face."""

import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from fsth_hub.landmarks import Face, get_detector, set_upright
from fsth_hub.media.paste_back import PasteBack
from fsth_hub.models.cropping import CropBox, crop_box, crop_image
from fsth_hub.models.errors import FsthWarning, NoFaceError
from fsth_hub.pipelines.portraits import cut_heads


@pytest.fixture(scope="module")
def detector():
    return get_detector()


@pytest.mark.parametrize("turn", range(4))
def test_a_photograph_is_set_upright(detector, astronaut, turn):
    small = np.asarray(Image.fromarray(astronaut).resize((320, 320)))
    lying = np.ascontiguousarray(np.rot90(small, -turn))
    upright = set_upright(lying, detector)
    np.testing.assert_array_equal(upright.image, small)
    assert upright.turn == turn and upright.faces[0].score > 0.8
    np.testing.assert_array_equal(upright.faces[0].points, detector.detect(small)[0].points)


class Scores:
    """Sees a face as sure as the picture's first pixel says, in percent, and none where that is 0."""

    def __init__(self):
        self.asked = 0

    def detect(self, image):
        self.asked += 1
        score = image[0, 0, 0] / 100
        return [Face(np.zeros((78, 2), np.float32), score)] if score else []


def corners(*scores: int) -> np.ndarray:
    """A picture whose first pixel is so much after 0, 1, 2 and 3 turns to the left."""
    image = np.zeros((4, 6, 3), np.uint8)
    image[0, 0], image[0, -1], image[-1, -1], image[-1, 0] = scores
    return image


@pytest.mark.parametrize("scores, turn, asked", [
    ((95, 99, 99, 99), 0, 1), ((60, 95, 50, 50), 1, 4), ((85, 10, 86, 0), 2, 4), ((85, 10, 20, 0), 0, 4),
    ((0, 0, 0, 50), 3, 4), ((0, 0, 0, 0), 0, 4),
])  # fmt: skip
def test_the_surest_turn_wins_and_ordinary_pictures_are_looked_at_once(scores, turn, asked):
    detector, image = Scores(), corners(*scores)
    upright = set_upright(image, detector)
    assert (upright.turn, detector.asked, bool(upright.faces)) == (turn, asked, any(scores))
    np.testing.assert_array_equal(upright.image, np.rot90(image, turn))


def test_the_crop_and_paste_back_follow_the_turn(detector, astronaut):
    lying = np.ascontiguousarray(np.rot90(astronaut, 1))
    (crop,), (points,), (box,) = cut_heads(lying, detector, 0, True, 64)
    (expected,), (landmarks,), (upright,) = cut_heads(astronaut, detector, 0, True, 64)
    assert box == upright._replace(turn=3)
    np.testing.assert_array_equal(crop, expected)
    np.testing.assert_array_equal(points, landmarks)
    np.testing.assert_array_equal(crop_image(lying, box, len(crop)), crop)
    frame = crop_image(astronaut, upright, 256)
    np.testing.assert_array_equal(PasteBack(lying, box)(frame), PasteBack(astronaut, upright)(frame))


def faceless(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    if kind == "cloth":
        y, x = np.mgrid[:320, :320]
        image = np.stack([127 + 60 * np.sign(np.sin(x / 15 + n)) + 60 * np.sign(np.sin(y / 19)) for n in range(3)], 2)
        return image.clip(0, 255).astype(np.uint8)
    if kind == "clouds":
        image = sum(Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((320, 320)) * np.float32(1 / 4)
                    for n in (4, 8, 16, 32))  # fmt: skip
        return image.astype(np.uint8)
    drawing = Image.new("RGB", (400, 400), (200, 190, 180))
    draw = ImageDraw.Draw(drawing)
    if kind == "socket":
        draw.rounded_rectangle((80, 60, 320, 340), 20, fill=(180, 170, 160), outline=(50, 48, 45), width=3)
        draw.rectangle((140, 140, 160, 200), fill=(50, 48, 45))
        draw.rectangle((240, 140, 260, 200), fill=(50, 48, 45))
        draw.ellipse((185, 230, 215, 262), fill=(50, 48, 45))
    else:  # a house
        draw.polygon([(50, 150), (200, 40), (350, 150)], fill=(140, 60, 50))
        draw.rectangle((70, 150, 330, 380), fill=(220, 200, 170))
        for left in (110, 240):
            draw.rectangle((left, 180, left + 50, 230), fill=(60, 80, 110))
        draw.rectangle((170, 280, 230, 380), fill=(90, 60, 40))
    return np.asarray(drawing.filter(ImageFilter.GaussianBlur(1.5)))


@pytest.mark.parametrize("kind", ["cloth", "clouds", "socket", "house"])
def test_what_is_no_face_is_not_animated(detector, kind):
    with pytest.raises(NoFaceError, match="No face was found in portrait 1; use a picture"):
        cut_heads(faceless(kind), detector, 0, True, 64)


def test_an_invented_face_has_a_low_score(detector, astronaut):
    """Upside down, the networks may see a face in a chin: no turn but the right one is sure."""
    crop = crop_image(astronaut, crop_box(detector.detect(astronaut)[0].points), 384)
    assert detector.detect(crop)[0].score > 0.85
    for turn in (1, 2, 3):
        faces = detector.detect(np.ascontiguousarray(np.rot90(crop, turn)))
        assert all(face.score < 0.8 for face in faces)


def test_closely_cut_portraits_are_warned_of_in_one_sentence(detector, astronaut, tmp_path):
    left, top, right, bottom = (round(value) for value in detector.detect(astronaut)[0].box)
    tight = np.ascontiguousarray(astronaut[top - 20 : bottom + 20, left - 20 : right + 20])
    Image.fromarray(tight).save(tmp_path / "tight.png")
    with pytest.warns(FsthWarning) as caught:
        crops, _, (box,) = cut_heads([tmp_path / "tight.png"], detector, 0, True, 64)
    (words,) = [str(warning.message) for warning in caught]
    assert words.startswith("tight.png is cut closely") and "--paste-back" in words and words.count(". ") == 0
    with pytest.warns(FsthWarning, match="Portrait 1 and portrait 3 are cut closely"):
        cut_heads([tight, astronaut, tight], detector, 0, True, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FsthWarning)
        cut_heads(tight, detector, 0, True, 64, paste_back=True)
        cut_heads(astronaut[:, :], detector, 0, True, 64)
    assert isinstance(box, CropBox) and box.left < 0
