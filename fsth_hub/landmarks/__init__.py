"""Faces and their 78 landmarks: finding, following and adapting them.

Everything is imported when it is asked for: the names of the detectors are needed where neither NumPy nor OpenCV is,
and training crops and rasterizes without OpenCV.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from ..models.errors import FsthError


if TYPE_CHECKING:
    from .base import LandmarkDetector


_MODULES = {
    "BlinkCloser": "blinks",
    "Face": "base",
    "FaceTracker": "tracking",
    "GroupTracker": "group_tracking",
    "LandmarkDetector": "base",
    "LandmarkSmoother": "smoothing",
    "MotionAdapter": "motion",
    "adapt_shots": "motion",
    "close_blinks": "blinks",
    "pick_reference": "motion",
    "set_upright": "orientation",
    "smooth_clip": "smoothing",
    "smooth_shots": "smoothing",
    "track_clip": "tracking",
}

__all__ = ["DEFAULT_DETECTOR", "DETECTORS", "DetectorEntry", "describe_detectors", "get_detector", *sorted(_MODULES)]


@dataclass(frozen=True)
class DetectorEntry:
    """How a landmark detector is made.

    Args:
        module: Of its class, relative to this package or absolute; imported when the detector is asked for.
        class_name: A [`LandmarkDetector`] whose constructor needs no arguments.
        description: In a few words, for those who choose.
    """

    module: str
    class_name: str
    description: str

    def make(self) -> "LandmarkDetector":
        return getattr(import_module(self.module, __name__), self.class_name)()


# All that is to be done for a new detector is an entry here: every command, script and message goes by this table.
DETECTORS = {
    "mediapipe": DetectorEntry(".mediapipe", "MediaPipeDetector", "offline, with irises"),
    "face-alignment": DetectorEntry(".face_alignment", "FaceAlignmentDetector", "the paper's, fetches its weights"),
}
DEFAULT_DETECTOR = "mediapipe"


def get_detector(name: str = DEFAULT_DETECTOR) -> "LandmarkDetector":
    """Make the landmark detector of this name, one of `DETECTORS`.

    Raises:
        FsthError: There is no such detector, or its weights cannot be fetched.
    """
    if name not in DETECTORS:
        raise FsthError(f"There is no landmark detector '{name}'; use {' or '.join(map(repr, DETECTORS))}.")
    return DETECTORS[name].make()


def describe_detectors() -> str:
    """The detectors' names, each with its description, in a line."""
    return ", ".join(f"{name} ({entry.description})" for name, entry in DETECTORS.items())


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'fsth_hub.landmarks' has no attribute '{name}'")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
