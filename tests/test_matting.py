"""Cutting a person out of a picture."""

import cv2
import numpy as np
import pytest

from fsth_hub.landmarks import get_detector
from fsth_hub.media import matting
from fsth_hub.media.matting import cut_out
from fsth_hub.models.cropping import crop_box, crop_image, to_crop
from fsth_hub.models.landmark_layout import FACE


@pytest.fixture(scope="module")
def points(astronaut) -> np.ndarray:
    return get_detector().detect(astronaut)[0].points


def head(astronaut, points, size: int) -> tuple[np.ndarray, np.ndarray]:
    box = crop_box(points)
    return crop_image(astronaut, box, size), to_crop(points, box, size)


def face_of(points: np.ndarray, size: int) -> np.ndarray:
    """Where the face is in a matte of points of a crop of that size, a little within its outline."""
    face = np.zeros((256, 256), np.uint8)
    cv2.fillConvexPoly(face, cv2.convexHull((points[FACE] * 256 / size).round().astype(np.int32)), 1)
    return cv2.erode(face, np.ones((7, 7))) > 0


@pytest.mark.parametrize("size", [64, 256, 333, 512])
def test_face_and_hair_are_figure_and_the_wall_is_not(astronaut, points, size):
    matte = cut_out(*head(astronaut, points, size))
    assert matte.shape == (256, 256) and matte.dtype == np.float32
    assert 0 <= matte.min() and matte.max() <= 1
    _, landmarks = head(astronaut, points, 256)
    assert matte[face_of(landmarks, 256)].min() > 0.98
    forehead = landmarks[19:25].mean(axis=0) - [0, 25]
    assert matte[tuple(forehead.astype(int)[::-1])] > 0.9
    assert matte[-20:, 100:156].mean() > 0.9  # her suit
    assert matte[60:110, 2:12].mean() < 0.1


def test_mattes_of_all_sizes_agree(astronaut, points):
    mattes = [cut_out(*head(astronaut, points, size)) for size in (256, 300, 512)]
    assert all(np.abs(matte - mattes[0]).mean() < 0.02 for matte in mattes)


@pytest.mark.parametrize("figure", [0.0, 1.0])
def test_face_is_figure_whatever_the_network_says(astronaut, points, monkeypatch, figure):
    class Network:
        def setInput(self, blob):
            assert blob.shape == (1, 3, 256, 256) and 0 <= blob.min() and blob.max() <= 1
            assert np.allclose(blob[0].transpose(1, 2, 0) * 255, crop, atol=0.01)  # RGB

        def forward(self):
            return np.full((1, 1, 256, 256), figure, np.float32)

    monkeypatch.setattr(matting, "_network", Network)
    crop, landmarks = head(astronaut, points, 256)
    matte = cut_out(crop, landmarks)
    assert matte[face_of(landmarks, 256)].min() > 0.98
    assert matte[0, 0] == figure


def test_without_a_border_all_is_figure(points, monkeypatch):
    """What has no clean edge, such as noise, is not cut apart; the face is figure at any rate."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    landmarks = to_crop(points, crop_box(points), 256)
    matte = cut_out(noise, landmarks)
    assert matte[face_of(landmarks, 256)].min() > 0.98

    class Unsure:
        def setInput(self, blob):
            pass

        def forward(self):
            return np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(256, axis=0)

    monkeypatch.setattr(matting, "_network", Unsure)
    assert cut_out(noise, landmarks).min() == 1


def test_landmarks_beyond_the_crop_are_no_trouble(astronaut, points):
    crop, landmarks = head(astronaut, points, 256)
    for shift in ((-150, 0), (0, 120), (1000, 1000)):
        matte = cut_out(crop, landmarks + np.float32(shift))
        assert np.isfinite(matte).all() and matte.min() >= 0
