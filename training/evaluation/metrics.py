"""Measures of frames against the truth (arXiv 1905.08233, section 4.1) and against the driver.

Pictures are H x W x 3 uint8 RGB and landmarks 78 x 2 pixels. LPIPS is in fsth_hub/finetuning/feature_networks.py.
"""

from pathlib import Path

import cv2
import numpy as np
from skimage.metrics import structural_similarity
from skimage.transform import SimilarityTransform

from fsth_hub.landmarks.pose import Pose
from fsth_hub.models.errors import FsthError
from fsth_hub.models.landmark_layout import FACE, INNER_LIPS, LEFT_EYE, OUTER_LIPS, RIGHT_EYE, interocular


# Where ArcFace's training has the centres of the eyes, the tip of the nose and the corners of the mouth: pixels of a
# 112 x 112 crop, counted from the middle of the first one.
ARCFACE_SIZE = 112
ARCFACE_POINTS = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
NOSE_TIP, RIGHT_MOUTH_CORNER, LEFT_MOUTH_CORNER = 30, 48, 54


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity as its authors compute it (Wang et al. 2004): a Gaussian window of 11 x 11 pixels with
    sigma 1.5, each colour for itself; 1 for equal pictures.
    """
    image, truth = (np.float32(picture) / 255 for picture in (image, truth))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(image, truth, channel_axis=2, data_range=1.0, **options))


class IdentityNetwork:
    """A face-recognition network of ArcFace's kind, for CSIM: the cosine of two embeddings, `a @ b`.

    Args:
        path (`str` or `Path`): ONNX file of a network that sees 1 x 3 x 112 x 112 RGB in [-1, 1], aligned.

    Raises:
        FsthError: There is no such file, or it is no network that can be read.
    """

    def __init__(self, path: str | Path):
        if not Path(path).is_file():
            raise FsthError(f"There is no identity network at {path}: give an ONNX file.")
        try:
            # OpenCV's classic engine cannot read such networks; the new one gives only the first of several outputs,
            # but this has only one
            self.network = cv2.dnn.readNetFromONNX(str(path), engine=cv2.dnn.ENGINE_NEW)
        except cv2.error as error:
            raise FsthError(f"{Path(path).name} is no ONNX network that OpenCV can read.") from error

    def __call__(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """The embedding of the face with these landmarks, of length 1."""
        # one by one: exported networks often have a batch of one cut in stone
        aligned = align_face(image, landmarks)
        self.network.setInput(cv2.dnn.blobFromImage(aligned, 1 / 127.5, mean=(127.5, 127.5, 127.5)))
        embedding = self.network.forward().ravel()
        return embedding / np.linalg.norm(embedding)


def align_face(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The face, 112 x 112 x 3, turned and scaled so that its five points lie nearest to ArcFace's."""
    eyes = [landmarks[eye].mean(axis=0) for eye in (RIGHT_EYE, LEFT_EYE)]
    points = np.stack([*eyes, *landmarks[[NOSE_TIP, RIGHT_MOUTH_CORNER, LEFT_MOUTH_CORNER]]])
    # ours count from the corner of the first pixel
    transform = SimilarityTransform.from_estimate(points - 0.5, ARCFACE_POINTS)
    return cv2.warpAffine(image, transform.params[:2], (ARCFACE_SIZE, ARCFACE_SIZE))


def keypoint_distance(landmarks: np.ndarray, truth: np.ndarray) -> float:
    """AKD: mean distance of the 68 face points, in per cent of the true distance between the eyes."""
    return float(100 * np.linalg.norm(landmarks[FACE] - truth[FACE], axis=1).mean() / interocular(truth))


def pose_distance(fake: np.ndarray, portrait: np.ndarray, driver: np.ndarray, reference: np.ndarray) -> float:
    """
    How differently two heads have turned: mean over yaw, pitch and roll of the absolute difference, in degrees.

    Each head's turn counts from its own unmoved frame, because relative motion keeps the portrait's own pose.

    Args:
        fake, portrait: the person in the generated frame and in the portrait.
        driver, reference: the driver in the same frame and in the one that counts as the portrait's pose.
    """

    def turn(points, unmoved):  # rotations about x, y, z (pitch, yaw, roll)
        return np.array(cv2.RQDecomp3x3(Pose.of(points).rotation @ Pose.of(unmoved).rotation.T)[0])

    return float(np.abs(turn(fake, portrait) - turn(driver, reference)).mean())


def expression_distance(fake: np.ndarray, portrait: np.ndarray, driver: np.ndarray, reference: np.ndarray) -> float:
    """
    How differently two faces have changed: mean over four ratios of the absolute difference, in per cent.

    The ratios are the opening of either eye over its width, the opening between the inner lips over the width of the
    mouth, and the width of the mouth over the distance between the eyes; all on the face turned to the viewer. Each
    face's ratios count from those in its own unmoved frame, so that a driver's wide eyes are no error of the portrait.

    Args:
        fake, portrait, driver, reference: as in [`pose_distance`].
    """

    def change(points, unmoved):
        return expression_ratios(points) - expression_ratios(unmoved)

    return float(100 * np.abs(change(fake, portrait) - change(driver, reference)).mean())


def expression_ratios(landmarks: np.ndarray) -> np.ndarray:
    """The four ratios of [`expression_distance`]."""
    upright = Pose.of(landmarks).lift(landmarks)[:, :2]
    x, y = upright.T

    def opening(upper, lower) -> float:
        return y[lower].mean() - y[upper].mean()

    # an eye: a corner, two points of the upper lid, the other corner, two of the lower lid
    eyes = [opening(eye[1:3], eye[4:6]) / np.ptp(x[eye[[0, 3]]]) for eye in (RIGHT_EYE, LEFT_EYE)]
    mouth_width = np.ptp(x[OUTER_LIPS[[0, 6]]])
    mouth = opening(INNER_LIPS[1:4], INNER_LIPS[5:8]) / mouth_width
    return np.array([*eyes, mouth, mouth_width / interocular(upright)])
