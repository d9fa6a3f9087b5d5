"""The default detector: Google's MediaPipe face mesh and iris networks, and YuNet on OpenCV's DNN module.

The networks lie in `weights/` (see NOTICE for their origin); the mediapipe package itself is not needed.
"""

import threading
from pathlib import Path

import cv2
import numpy as np

from ..models.landmark_layout import (
    FACE,
    FLIP,
    LEFT_EYE,
    LEFT_IRIS,
    NUM_POINTS,
    RIGHT_EYE,
    RIGHT_IRIS,
    interocular,
)
from .base import Face
from .networks import load_network


WEIGHTS = Path(__file__).parent / "weights"
MESH_SIZE = 192
IRIS_SIZE = 64

# Side of the mesh's crop, in sizes of YuNet's box: that on which the network was trained. The same crop in terms of
# the 68 points: its side, and how far its middle lies above their mean, both in their spread (root mean square
# distance from the mean, which jitters far less than a bounding box, and so does the next frame's crop).
BOX_TO_CROP = 1.5
SPREAD_TO_CROP = 4.5
SPREAD_TO_FOREHEAD = 0.14
EYE_TO_CROP = 2.3

# The vertex of MediaPipe's face mesh (468 points) that stands for each iBUG point.
MESH_TO_68 = np.array([
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301,
    168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 82, 13, 312, 308, 317, 14, 87,
])  # fmt: skip

# The points of the iris network's eye contour (71 x 3) that are the six points of an eye.
CONTOUR_TO_EYE = [0, 11, 13, 8, 5, 3]

MIRRORED = np.array([[-1, 0, 1], [0, 1, 0], [0, 0, 1]])  # a region with left and right exchanged


def _view(turn: float, scale: float, x: float, y: float) -> np.ndarray:
    """The unit square turned (radians) and scaled about its middle, and shifted; a 3 x 3 matrix."""
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix[:2, 2] = 0.5 - matrix[:2, :2] @ (0.5, 0.5) + (x, y)
    return matrix


# Where exactly a region is cut out moves the points by half a pixel of 256, and the picture with them: so they are the
# mean of several views of the region. In a mirrored one left points are named right. See training/LOG.md.
AS_NAMED = slice(None)
VIEWS = (
    (_view(0.115, 1.0, 0.03, 0.0), AS_NAMED),
    (_view(-0.027, 1.06, -0.015, 0.026) @ MIRRORED, FLIP[FACE]),
    (_view(-0.088, 0.94, -0.015, -0.026), AS_NAMED),
)
EYE_VIEWS = (_view(0.0, 1.08, 0.026, 0.0), _view(0.0, 0.93, -0.026, 0.0))

# A face is as sure as YuNet and the mesh's presence say, and the less the farther YuNet's own five points lie from
# those of the mesh, and these from those that the mesh finds in the mirrored picture: so far (in distances between the
# eyes) for a score of 1 / e. What is below the bound is no face; see training/LOG.md.
FULL_SCORE = 0.9  # of YuNet, which gives no more than 0.95 to anything
DOUBTFUL_POINTS, DOUBTFUL_MIRROR = 0.7, 0.3
MIN_SCORE = 0.4

PRESENCE = 0.5  # the mesh network's own probability that its crop shows a face
# How hard to look: YuNet's threshold, the longer side of the picture it sees, the gamma that brightens it. Each
# attempt is made only where those before found nothing: paintings and dark or very small faces need the later ones.
ATTEMPTS = ((0.7, 640, 1.0), (0.4, 640, 1.0), (0.4, 320, 1.0), (0.4, 1280, 1.0), (0.3, 640, 0.5))


class MediaPipeDetector:
    """Finds 78 landmarks on a CPU in milliseconds, offline. Threads that share one take turns."""

    def __init__(self):
        self._turn = threading.Lock()  # YuNet keeps the size of its input until it is run
        self.yunet = cv2.FaceDetectorYN.create(str(WEIGHTS / "face_detection_yunet_2023mar.onnx"), "", (320, 320))
        mesh, iris = ("conv2d_21", "conv2d_31"), ("output_eyes_contours_and_brows", "output_iris")
        self.mesh = load_network(WEIGHTS / "face_landmark.tflite", mesh, len(VIEWS))
        self.iris = load_network(WEIGHTS / "iris_landmark.tflite", iris, 2 * len(EYE_VIEWS))

    def __reduce__(self):
        return MediaPipeDetector, ()  # its networks are neither copied nor pickled

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find every face of a picture (H x W x 3 uint8, RGB), the largest first."""
        return self._detect(image, ATTEMPTS)

    def glance(self, image: np.ndarray) -> list[Face]:
        """As `detect`, but quickly: for frames in which a face may come back."""
        return self._detect(image, ATTEMPTS[1:2])

    def _detect(self, image: np.ndarray, attempts: tuple) -> list[Face]:
        for threshold, side, gamma in attempts:
            faces = []
            for found in self._boxes(image, threshold, side, gamma):
                if (face := self._face_in(image, *found)) is not None:
                    faces.append(face)
            if faces:
                return sorted(_distinct(faces), key=lambda face: face.size, reverse=True)
        return []

    def _face_in(self, image: np.ndarray, box: np.ndarray, five: np.ndarray, score: float) -> Face | None:
        """The face that YuNet has found, with a score that both networks give, or None where there is none."""
        rough = self._mesh(image, _region(box[:2] + box[2:] / 2, BOX_TO_CROP * box[2:].max(), five[1] - five[0]))
        if rough is None or (face := self._face(image, rough[0])) is None:
            return None
        points = face.points
        (mirrored,), (presence,) = self._look(image, [_region_of_points(rough[0]) @ MIRRORED])
        same = np.stack([points[RIGHT_EYE].mean(axis=0), points[LEFT_EYE].mean(axis=0), points[30], *points[[48, 54]]])
        apart, unlike = (
            np.linalg.norm(one - other, axis=1).mean() / interocular(points)
            for one, other in ((five, same), (mirrored[FLIP[FACE]], points[FACE]))
        )
        score = min(1.0, score / FULL_SCORE) * (rough[1] + face.score + presence) / 3
        score *= np.exp(-((apart / DOUBTFUL_POINTS) ** 2) - (unlike / DOUBTFUL_MIRROR) ** 2)
        return Face(points, float(score)) if score >= MIN_SCORE else None

    def track(self, image: np.ndarray, previous: Face) -> Face | None:
        """Find the face of the last frame again without looking for faces; None where it is lost."""
        return self._face(image, previous.points[FACE])

    def _boxes(self, image: np.ndarray, threshold: float, side: int, gamma: float) -> list[tuple]:
        """YuNet's faces: (left, top, width, height), five points (5 x 2, pixels of the picture) and the score."""
        scale = side / max(image.shape[:2])
        size = [max(1, round(scale * length)) for length in image.shape[1::-1]]
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        if gamma != 1:
            small = (255 * (small / 255.0) ** gamma).astype(np.uint8)
        with self._turn:
            self.yunet.setInputSize(size)
            self.yunet.setScoreThreshold(threshold)
            rows = self.yunet.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]
        # The points: the eyes from the picture's left to its right, the nose, the mouth's corners alike.
        rows = [] if rows is None else rows
        return [(row[:4] / scale, row[4:14].reshape(5, 2) / scale, float(row[14])) for row in rows]

    def _face(self, image: np.ndarray, points: np.ndarray) -> Face | None:
        """All landmarks of the face about whose 68 points something is known, or None where there is none."""
        region = _region_of_points(points)
        seen, presences = self._look(image, [region @ view for view, _ in VIEWS])
        score = float(np.mean(presences))
        if score < PRESENCE:
            return None
        points = np.full((NUM_POINTS, 2), np.nan, np.float32)
        points[FACE] = np.mean([each[order] for each, (_, order) in zip(seen, VIEWS, strict=True)], axis=0)
        (points[RIGHT_EYE], points[RIGHT_IRIS]), (points[LEFT_EYE], points[LEFT_IRIS]) = self._eyes(image, points)
        return Face(points, score)

    def _mesh(self, image: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, float] | None:
        """The 68 points within a region of the picture, and how surely it shows a face; None where it does not."""
        (points,), (score,) = self._look(image, [region])
        return None if score < PRESENCE else (points, score)

    def _look(self, image: np.ndarray, regions: list[np.ndarray]) -> tuple[list[np.ndarray], list[float]]:
        """The 68 points that the mesh network sees in each region, be there a face or not, and its presence."""
        meshes, presences = self.mesh([_patch(image, region, MESH_SIZE) for region in regions])
        points = meshes.reshape(-1, 468, 3)[:, MESH_TO_68, :2] / MESH_SIZE
        seen = [_apply(region, own) for region, own in zip(regions, points, strict=True)]
        return seen, (1 / (1 + np.exp(-presences[:, 0].astype(float)))).tolist()

    def _eyes(self, image: np.ndarray, points: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The lids (6 x 2, pixels) and the iris (5 x 2) of either eye of a face, the right one first.

        The mesh never closes an eye altogether; the iris network's own lids do.
        """
        regions = []
        for eye, matrix in ((RIGHT_EYE, np.eye(3)), (LEFT_EYE, MIRRORED)):  # it knows the one on the picture's left
            corner, other = points[eye[[0, 3]]]
            along = other - corner
            region = _region((corner + other) / 2, EYE_TO_CROP * np.linalg.norm(along), along) @ matrix
            regions += [region @ view for view in EYE_VIEWS]
        contours, irises = self.iris([_patch(image, region, IRIS_SIZE) for region in regions])
        contours, irises = contours.reshape(-1, 71, 3)[:, CONTOUR_TO_EYE, :2], irises.reshape(-1, 5, 3)[..., :2]
        looks = np.concatenate([contours, irises], axis=1) / IRIS_SIZE  # 2V x 11 x 2
        looks = np.stack([_apply(region, look) for region, look in zip(regions, looks, strict=True)])
        (right, right_iris), (left, left_iris) = (
            np.split(seen.mean(axis=0), [len(CONTOUR_TO_EYE)]) for seen in np.split(looks, 2)
        )
        return [(right, right_iris), (left[[3, 2, 1, 0, 5, 4]], left_iris[[0, 3, 2, 1, 4]])]


def _region(centre: np.ndarray, side: float, along: np.ndarray) -> np.ndarray:
    """A rotated square of the picture as the 2 x 3 matrix that takes the unit square there; x runs `along`."""
    x_axis = side * along / np.linalg.norm(along)
    y_axis = np.array([-x_axis[1], x_axis[0]])
    return np.stack([x_axis, y_axis, centre - (x_axis + y_axis) / 2], axis=1)


def _region_of_points(points: np.ndarray) -> np.ndarray:
    """The crop in which the mesh network expects the face with these 68 points."""
    along = points[LEFT_EYE].mean(axis=0) - points[RIGHT_EYE].mean(axis=0)
    up = np.array([along[1], -along[0]]) / np.linalg.norm(along)
    spread = np.sqrt(points.var(axis=0).sum())
    return _region(points.mean(axis=0) + SPREAD_TO_FOREHEAD * spread * up, SPREAD_TO_CROP * spread, along)


def _apply(region: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points of a region (N x 2, 0 to 1) in pixels of the picture."""
    return (points @ region[:, :2].T + region[:, 2]).astype(np.float32)


def _patch(image: np.ndarray, region: np.ndarray, size: int) -> np.ndarray:
    """A region of the picture as a network wants to see it: size x size x 3."""
    # Cut out finely and average, for a network jitters when it sees only every third pixel of a large face.
    fine = size * max(1, int(np.ceil(np.linalg.norm(region[:, 0]) / size)))
    # warpAffine counts from the middle of the first pixel, we from its corner.
    matrix = region.copy()
    matrix[:, :2] /= fine
    matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
    patch = cv2.warpAffine(image, matrix, (fine, fine), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return cv2.resize(patch, (size, size), interpolation=cv2.INTER_AREA)


def _distinct(faces: list[Face]) -> list[Face]:
    """Leave out the faces that are another, surer one once more."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: face.score, reverse=True):
        if all(face.distance(other) > 0.3 * other.size for other in kept):
            kept.append(face)
    return kept
