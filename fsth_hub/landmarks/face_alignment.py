"""The paper's own detector: the `face-alignment` package, 68 points without irises, far slower than the default."""

import numpy as np
import torch

from ..models.errors import FsthError
from ..models.landmark_layout import FACE, NUM_POINTS
from .base import Face


class FaceAlignmentDetector:
    """Finds the 68 iBUG points; the irises stay NaN. Runs on a GPU where there is one.

    Raises:
        FsthError: The package's weights, fetched on first use, cannot be had.
    """

    def __init__(self):
        # Here, because it takes seconds and only those who ask for this detector should pay.
        import face_alignment
        from face_alignment.detection.sfd import sfd_detector
        from face_alignment.utils import load_file_from_url

        try:
            # Left to itself the package would fully unpickle this file; given a path it loads nothing but weights.
            sfd = load_file_from_url(sfd_detector.models_urls["s3fd"], check_hash=True)
            self.networks = face_alignment.FaceAlignment(
                face_alignment.LandmarksType.TWO_D,
                device="cuda" if torch.cuda.is_available() else "cpu",
                face_detector_kwargs={"path_to_detector": sfd},
                compile=False,  # needs a C compiler and a minute
            )
        except (OSError, RuntimeError) as error:
            raise FsthError(
                f"The detector 'face-alignment' could not fetch its weights ({error}); go online once, or use the "
                "default detector 'mediapipe', which needs no download."
            ) from error

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find every face of a picture (H x W x 3 uint8, RGB), the largest first."""
        boxes = self.networks.face_detector.detect_from_image(image.copy())  # of 5: left, top, right, bottom, score
        if len(boxes) == 0:
            return []
        faces = []
        for found, box in zip(self.networks.get_landmarks_from_image(image, boxes), boxes, strict=True):
            points = np.full((NUM_POINTS, 2), np.nan, np.float32)
            points[FACE] = found
            faces.append(Face(points, float(box[4])))
        return sorted(faces, key=lambda face: face.size, reverse=True)

    def track(self, image: np.ndarray, previous: Face) -> Face | None:
        """Find the face of the last frame again. Its networks never say that a face is gone, so this detects anew."""
        near = [face for face in self.detect(image) if face.distance(previous) < 0.5 * previous.size]
        return min(near, key=previous.distance, default=None)
