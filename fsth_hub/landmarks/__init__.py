"""Faces and their 78 landmarks: finding, following and adapting them.

What needs OpenCV (the detectors) is imported only when it is asked for, so that training can crop and draw without it.
"""

from ..models.errors import FsthError
from .base import Face, LandmarkDetector
from .motion import MotionAdapter, pick_reference
from .smoothing import LandmarkSmoother, smooth_clip
from .tracking import track_clip


__all__ = [
    "Face",
    "LandmarkDetector",
    "LandmarkSmoother",
    "MotionAdapter",
    "get_detector",
    "pick_reference",
    "smooth_clip",
    "track_clip",
]


def get_detector(name: str = "mediapipe") -> LandmarkDetector:
    """Make the landmark detector of this name.

    Args:
        name: "mediapipe", which works offline and knows irises, or "face-alignment", the paper's.

    Raises:
        FsthError: There is no such detector, or its weights cannot be fetched.
    """
    if name == "mediapipe":
        from .mediapipe import MediaPipeDetector

        return MediaPipeDetector()
    if name == "face-alignment":
        from .face_alignment import FaceAlignmentDetector

        return FaceAlignmentDetector()
    raise FsthError(f"There is no landmark detector '{name}'; use 'mediapipe' or 'face-alignment'.")
