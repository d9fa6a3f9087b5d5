"""Small shards to train and evaluate on, and the networks that go with them."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from test_modeling import SIZE

from fsth_hub.landmarks.pose import MEAN_FACE, Pose
from fsth_hub.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator
from training.prepare_dataset import add_clip


ROOT = Path(__file__).parents[1]
NETWORKS = {"embedder": FsthEmbedder, "generator": FsthGenerator, "discriminator": FsthDiscriminator}
NUM_FRAMES = 6
RIGHT_CORNER, LEFT_CORNER = 36, 45  # outer corners of the eyes: mirror images of each other


def landmarks(shift: float = 0.0) -> np.ndarray:
    return Pose(np.eye(3), 0.1, np.array([30.0 + shift, 34.0])).project(MEAN_FACE).astype(np.float32)


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def grey(value: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), value, np.uint8)


def write_shards(folder: Path, clips: dict[str, list[np.ndarray]], points=None) -> Path:
    """A shard for each clip; frame i of it has its landmarks i pixels to the right, or those that are given."""
    folder.mkdir(exist_ok=True)
    for number, (name, frames) in enumerate(clips.items()):
        with tarfile.open(folder / f"shard-{number:05d}.tar", "w") as tar:
            shifted = np.stack([landmarks(index) if points is None else points for index in range(len(frames))])
            times = [index / 25 for index in range(len(frames))]
            add_clip(tar, Path(name), [jpeg(frame) for frame in frames], shifted, times)
    return folder
