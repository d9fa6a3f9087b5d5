"""What drives a person: a clip reduced to its face's landmarks, and the landmarks of a portrait that follows them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..landmarks import FaceTracker, LandmarkDetector, adapt_shots, smooth_shots
from ..landmarks.motion import MotionMode
from ..media.containers import ClipFile
from ..media.reading import Clip
from ..models.cropping import CropBox, crop_box, to_crop, whole_frame
from ..models.errors import NoFaceError


@dataclass
class DrivingMotion:
    """A driving clip as the generator needs it: no pictures, only where the landmarks are.

    Args:
        landmarks (`list`): for each frame 78 x 2 pixels of the crop, or `None` where the face is gone.
        fps (`float`): frames per second.
        box (`CropBox`): the crop, fixed for the whole clip, pixels of the clip.
        audio_from (`Path`, `bytes` or file object, *optional*): the file that holds the clip's sound.
        shots (`tuple`): of each shot the first frame and the one after its last; empty where all is one.
    """

    landmarks: list[np.ndarray | None]
    fps: float
    box: CropBox
    audio_from: ClipFile | None = None
    shots: tuple[tuple[int, int], ...] = ()

    @property
    def missing(self) -> list[int]:
        """The frames in which no face was found; the last pose is held there."""
        return [index for index, points in enumerate(self.landmarks) if points is None]

    def first(self, count: int | None) -> "DrivingMotion":
        """Its first so many frames; all for None."""
        landmarks = self.landmarks[:count]
        shots = ((start, min(stop, len(landmarks))) for start, stop in self.shots if start < len(landmarks))
        return replace(self, landmarks=landmarks, shots=tuple(shots))


def read_motion(
    clip: Clip, detector: LandmarkDetector, face_index: int, crop: bool, size: int, progress: Callable[[], object]
) -> DrivingMotion:
    """
    Follow the face of a clip, holding one frame at a time.

    Args:
        clip, face_index, crop: as in [`~FsthPipeline.read_driving`].
        detector ([`LandmarkDetector`]): what finds the face.
        size (`int`): side of the crop that the landmarks are given in, pixels.
        progress (`Callable`): called after each frame.

    Raises:
        NoFaceError: No frame has a face.
    """
    box = None if crop else whole_frame(clip.width, clip.height, clip.name)
    faces, track = [], FaceTracker(detector, face_index)
    for face in map(track, clip):
        faces.append(None if face is None else face.points)
        progress()
    found = [points for points in faces if points is not None]
    if not found:
        raise NoFaceError(f"No face was found in {clip.name}; use a clip in which the face is seen clearly.")
    box = box or crop_box(np.stack(found))
    landmarks = [None if points is None else to_crop(points, box, size) for points in faces]
    return DrivingMotion(landmarks, clip.fps, box, clip.audio_from, track.shots)


def adapt_motion(
    portrait: np.ndarray,
    driving: DrivingMotion,
    motion: MotionMode,
    reference_frame: int | None,
    motion_strength: float,
    smoothing: float,
) -> Iterator[np.ndarray]:
    """
    The landmarks of a portrait (78 x 2, pixels of its crop) frame by frame as the driver moves, each 78 x 2.

    The other arguments are those of [`~FsthPipeline.drive`].

    Raises:
        FsthError: The reference frame shows no face, or there is no such frame.
    """
    landmarks = smooth_shots(driving.landmarks, driving.fps, smoothing, driving.shots)
    return adapt_shots(portrait, landmarks, driving.shots, reference_frame, motion, motion_strength)
