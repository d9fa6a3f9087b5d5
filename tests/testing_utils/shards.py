"""Small shards to train and evaluate on."""

import tarfile
from pathlib import Path

import numpy as np

from fsth_hub.landmarks.pose import MEAN_FACE, Pose
from testing_utils.networks import SIZE
from training.prepare_dataset import Frames, add_clip, encode


NUM_FRAMES = 6
RIGHT_CORNER, LEFT_CORNER = 36, 45  # outer corners of the eyes: mirror images of each other


def landmarks(shift: float = 0.0) -> np.ndarray:
    return Pose(np.eye(3), 0.1, np.array([30.0 + shift, 34.0])).project(MEAN_FACE).astype(np.float32)


def jpeg(pixels: np.ndarray) -> bytes:
    return encode(pixels, "JPEG", quality=95)


def grey(value: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), value, np.uint8)


def as_frames(frames: list[np.ndarray], points: np.ndarray, mattes: list[np.ndarray] | None = None) -> Frames:
    """What is kept of a clip; by default all of it is figure."""
    mattes = [np.full((SIZE, SIZE), 255, np.uint8)] * len(frames) if mattes is None else mattes
    times = [index / 25 for index in range(len(frames))]
    return Frames([jpeg(frame) for frame in frames], [encode(matte, "PNG") for matte in mattes], points, times)


def write_shards(folder: Path, clips: dict[str, list[np.ndarray]], points=None, matte=None) -> Path:
    """
    A shard for each clip; frame i of it has its landmarks i pixels to the right, or those that are given, and each the
    matte that is given.
    """
    folder.mkdir(exist_ok=True)
    for number, (name, frames) in enumerate(clips.items()):
        with tarfile.open(folder / f"shard-{number:05d}.tar", "w") as tar:
            shifted = np.stack([landmarks(index) if points is None else points for index in range(len(frames))])
            add_clip(tar, Path(name), as_frames(frames, shifted, None if matte is None else [matte] * len(frames)))
    return folder
