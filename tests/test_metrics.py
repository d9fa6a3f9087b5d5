"""Measures of frames against the truth and against the driver."""

import cv2
import numpy as np
import pytest
import torch

from fsth_hub.finetuning.feature_networks import LPIPS, load_weights
from fsth_hub.landmarks import get_detector
from fsth_hub.landmarks.pose import MEAN_FACE, Pose
from fsth_hub.media.reading import open_clip
from fsth_hub.models.errors import FsthError
from fsth_hub.models.landmark_layout import FACE, INNER_LIPS, LEFT_EYE, RIGHT_EYE
from testing_utils.networks import SIZE
from testing_utils.paths import WEIGHTS
from training.evaluation.metrics import (
    ARCFACE_POINTS,
    IdentityNetwork,
    align_face,
    expression_distance,
    keypoint_distance,
    pose_distance,
    ssim,
)


IDENTITY_NETWORK = WEIGHTS / "identity_mobilefacenet.onnx"
CLIPS = WEIGHTS.parent / "data" / "clips" / "val"


def test_lpips_of_equal_pictures_is_nothing_and_grows_with_noise():
    path = WEIGHTS / "alexnet_lpips.safetensors"
    if not path.exists():
        pytest.skip("the weights of LPIPS are not here")
    lpips = LPIPS(load_weights(str(path)))
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    noise = torch.randn_like(pictures)
    assert torch.equal(lpips(pictures, pictures), torch.zeros(2))
    distances = torch.stack([lpips(pictures + strength * noise, pictures) for strength in (0.05, 0.2, 0.8)])
    assert (distances[0] > 0).all() and (distances.diff(dim=0) > 0).all()
    assert torch.allclose(lpips(pictures + noise, pictures), lpips(pictures, pictures + noise), atol=1e-6)


def test_ssim_is_the_authors_formula():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (40, 48, 3), np.uint8)
    b = (0.6 * a + 0.4 * rng.integers(0, 256, a.shape)).astype(np.uint8)

    def blur(picture):  # 11 x 11, and only where the window lies within the picture
        return cv2.GaussianBlur(picture, (11, 11), 1.5)[5:-5, 5:-5]

    x, y = a / 255.0, b / 255.0
    mean_x, mean_y = blur(x), blur(y)
    variances = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + 0.01**2) * (2 * covariance + 0.03**2)
    expected = likeness / ((mean_x**2 + mean_y**2 + 0.01**2) * (variances + 0.03**2))
    assert ssim(a, b) == pytest.approx(expected.mean(), abs=1e-5)
    assert ssim(a, a) == pytest.approx(1)


def test_face_is_aligned_by_its_five_points():
    """Spots at the five points of a face that lies on its side, half as large, must land on ArcFace's places."""
    points = ARCFACE_POINTS @ np.array([[0, 0.5], [-0.5, 0]]) + [90, 30]
    landmarks = np.full((78, 2), np.nan, np.float32)
    landmarks[FACE] = 0
    landmarks[RIGHT_EYE] = points[0] + np.array([[-4, 0], [-2, -2], [2, -2], [4, 0], [2, 2], [-2, 2]])
    landmarks[LEFT_EYE] = points[1] + np.array([[-4, 0], [-2, -2], [2, -2], [4, 0], [2, 2], [-2, 2]])
    landmarks[[30, 48, 54]] = points[2:]
    for point, place in zip(points, ARCFACE_POINTS, strict=True):
        # a spot around the point; landmarks count from the corner of the first pixel
        ys, xs = np.mgrid[:120, :120] + 0.5
        spot = np.exp(-((xs - point[0]) ** 2 + (ys - point[1]) ** 2) / 8)
        seen = align_face((255 * spot).astype(np.uint8)[..., None].repeat(3, axis=2), landmarks).astype(float)[..., 0]
        assert seen.shape == (112, 112)
        ys, xs = np.mgrid[:112, :112]
        centre = (xs * seen).sum() / seen.sum(), (ys * seen).sum() / seen.sum()
        assert centre == pytest.approx(tuple(place), abs=0.15)


def test_identity_network_tells_people_apart():
    if not (IDENTITY_NETWORK.exists() and CLIPS.exists()):
        pytest.skip("the identity network or the clips are not here")
    network, detector = IdentityNetwork(IDENTITY_NETWORK), get_detector()
    embeddings = []
    for person in ("id001", "id016", "id080"):
        frames = list(open_clip(next((CLIPS / person).glob("*.mp4")), max_frames=25))
        for frame in (frames[0], frames[-1]):
            embeddings.append(network(frame, detector.detect(frame)[0].points))
    similarity = np.stack(embeddings) @ np.stack(embeddings).T
    assert np.diag(similarity) == pytest.approx(np.ones(6), abs=1e-5)
    same = [similarity[0, 1], similarity[2, 3], similarity[4, 5]]
    others = [similarity[i, j] for i in range(6) for j in range(i) if i // 2 != j // 2]
    assert min(same) > max(others) + 0.2
    assert np.mean(same) > 0.8 and np.mean(others) < 0.2


def test_identity_network_sees_rgb_from_minus_one_to_one_and_gives_length_one():
    class Recorder:
        def setInput(self, blob):
            self.blob = blob

        def forward(self):
            return np.array([[3.0, 4.0]])

    network = IdentityNetwork.__new__(IdentityNetwork)
    network.network = Recorder()
    plain = np.full((120, 120, 3), (255, 0, 51), np.uint8)
    assert network(plain, seen()).tolist() == pytest.approx([0.6, 0.8])
    assert network.network.blob.shape == (1, 3, 112, 112)
    assert network.network.blob[0, :, 56, 56].tolist() == pytest.approx([1, -1, -0.6])


def test_identity_network_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(FsthError, match="no identity network at"):
        IdentityNetwork(tmp_path / "absent.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    with pytest.raises(FsthError, match="broken.onnx is no ONNX network"):
        IdentityNetwork(broken)


def seen(rotation=(0, 0, 0), upright=MEAN_FACE, scale=0.4) -> np.ndarray:
    """The mean face, or another, turned by degrees about x, y and z."""
    axes = [cv2.Rodrigues(np.radians(angle) * axis)[0] for angle, axis in zip(rotation, np.eye(3), strict=True)]
    return Pose(axes[0] @ axes[1] @ axes[2], scale, np.array([50.0, 60.0])).project(upright).astype(np.float32)


def test_keypoint_distance_is_in_per_cent_of_the_eyes_distance_and_knows_no_irises():
    truth = seen()  # 100 units of 0.4 pixels between the eyes
    moved = truth + [3, 4]
    moved[68:] = np.nan
    assert keypoint_distance(moved, truth) == pytest.approx(100 * 5 / 40, rel=0.01)
    half = truth.copy()
    half[:34] += [3, 4]
    assert keypoint_distance(half, truth) == pytest.approx(100 * 2.5 / 40, rel=0.01)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["pitch", "yaw", "roll"])
def test_pose_distance_is_of_turns_from_each_heads_own_rest(axis):
    def turned(degrees):
        return seen(np.eye(3)[axis] * degrees)

    # portrait at 5 degrees, driver's rest at -10: both turned by 12, then the portrait by 6 less
    assert pose_distance(turned(17), turned(5), turned(2), turned(-10)) == pytest.approx(0, abs=0.05)
    assert pose_distance(turned(11), turned(5), turned(2), turned(-10)) == pytest.approx(6 / 3, abs=0.05)


def with_open_mouth(units: float) -> np.ndarray:
    """The mean face with its inner lips this much further apart; between the corners of its mouth lie 74 units."""
    face = MEAN_FACE.copy()
    face[INNER_LIPS[5:8], 1] += units
    return face


def test_expression_distance_is_of_changes_from_each_faces_own_rest():
    def mouth(units, **kwargs):
        return seen(upright=with_open_mouth(units), **kwargs)

    # a mouth open by 8 units at rest opens by 10 more, the driver's by 10 from closed, in another pose and nearer
    turned = {"rotation": (5, 10, 15), "scale": 0.6}
    assert expression_distance(mouth(18), mouth(8), mouth(10, **turned), mouth(0, **turned)) == pytest.approx(0, abs=1)
    # one of four ratios, the width of the mouth being 74: 10 units more are 13.5 per cent, and a quarter of that here
    distance = expression_distance(mouth(0), mouth(0), mouth(10), mouth(0))
    assert distance == pytest.approx(100 * 10 / 74 / 4, rel=0.02)


def test_expression_distance_sees_eyes_close():
    closed = MEAN_FACE.copy()
    for eye in (RIGHT_EYE, LEFT_EYE):
        closed[eye[1:3], 1] = closed[eye[4:6][::-1], 1]
    openness = 100 * expression_of_eyes(MEAN_FACE)
    distance = expression_distance(seen(), seen(), seen(upright=closed), seen())
    assert distance == pytest.approx(2 * openness / 4, rel=0.01)  # two of four ratios


def expression_of_eyes(face: np.ndarray) -> float:
    """Opening over width of an eye."""
    lids = face[RIGHT_EYE[4:6], 1].mean() - face[RIGHT_EYE[1:3], 1].mean()
    return lids / np.ptp(face[RIGHT_EYE[[0, 3]], 0])
