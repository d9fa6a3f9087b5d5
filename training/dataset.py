"""Episodes for meta-training: frames of one clip, some to learn the person from and one to draw.

Reads the shards that `prepare_dataset.py` writes: uncompressed tar files in WebDataset's layout, so that a frame is
found by its offset and a folder larger than memory can be drawn from at random. A clip is

    KEY.0000.jpg ... KEY.0063.jpg   head crops
    KEY.landmarks.npy               frames x 78 x 2 float32, pixels of the crop, NaN where absent
    KEY.json                        {"identity": ..., "source": ..., "times": [...]}
"""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import Dataset

from fsth_hub.landmarks.cropping import CropBox, crop_image, to_crop
from fsth_hub.landmarks.drawing import draw_landmarks
from fsth_hub.landmarks.layout import FLIP, INNER_LIPS, IRISES, LEFT_EYE, RIGHT_EYE


# Augmentation: the same draw for all frames of an episode, since they show one person in one light.
MAX_SHIFT = 0.06  # of the frame's side
ZOOM_RANGE = (0.88, 1.1)
COLOUR_RANGE = (0.75, 1.25)
GREYSCALE_PROBABILITY = 0.05  # old photographs
IRISLESS_PROBABILITY = 0.15  # detectors that know no irises


@dataclass
class Clip:
    key: str
    identity: str
    shard: Path
    frames: list[tuple[int, int]]  # offset and size of each JPEG in the shard
    landmarks: np.ndarray  # frames x 78 x 2

    def image(self, index: int) -> Image.Image:
        offset, size = self.frames[index]
        with open(self.shard, "rb") as file:
            file.seek(offset)
            return Image.open(io.BytesIO(file.read(size))).convert("RGB")


def read_index(folder: str | Path) -> list[Clip]:
    """The clips of all `*.tar` shards of a folder."""
    shards = sorted(Path(folder).glob("*.tar"))
    if not shards:
        raise FileNotFoundError(f"There are no .tar shards in {folder}; make them with training/prepare_dataset.py.")
    clips = []
    for shard in shards:
        members: dict[str, dict] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                parts = members.setdefault(key, {"frames": []})
                if extension.endswith("jpg"):
                    parts["frames"].append((member.offset_data, member.size))
                else:
                    parts[extension] = tar.extractfile(member).read()
        for key, parts in members.items():
            landmarks = np.load(io.BytesIO(parts["landmarks.npy"]), allow_pickle=False)
            clips.append(Clip(key, json.loads(parts["json"])["identity"], shard, parts["frames"], landmarks))
    return clips


class EpisodeDataset(Dataset):
    """Item i is an episode of clip i: one frame to draw, then `num_sources` others of the same clip (section 3.1).

    Args:
        clips (`list[Clip]`): of [`read_index`].
        image_size (`int`): side of the frames in pixels.
        num_sources (`int`): K.
        augment (`bool`, *optional*, defaults to `True`): shift, zoom, mirror, colours, irises left out.
        far_sources (`bool`, *optional*, defaults to `False`):
            Take the portraits from the half of the clip whose eyes and mouth are least like the frame's: most pairs of
            frames show no blink and no closing mouth, and from them no generator learns any.
    """

    def __init__(
        self,
        clips: list[Clip],
        image_size: int,
        num_sources: int,
        augment: bool = True,
        far_sources: bool = False,
    ):
        self.clips = [clip for clip in clips if len(clip.frames) > num_sources]
        self.image_size = image_size
        self.num_sources = num_sources
        self.augment = augment
        self.far_sources = far_sources

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        """
        Returns:
            `dict`: `images` and `landmark_images` ((1 + K) x 3 x S x S uint8, the frame to draw first), `landmarks`
            ((1 + K) x 78 x 2 float32, pixels) and `clip` (the row of W).
        """
        clip = self.clips[index]
        chosen = torch.randperm(len(clip.frames)).tolist()
        if self.far_sources:
            target, *others = chosen
            others.sort(key=lambda frame: -expression_distance(clip.landmarks[frame], clip.landmarks[target]))
            far = others[: max(self.num_sources, len(others) // 2)]
            chosen = [target] + [far[position] for position in torch.randperm(len(far))]
        chosen = chosen[: 1 + self.num_sources]
        transform = self.random_transform() if self.augment else self.plain_transform
        pairs = [transform(clip.image(frame), clip.landmarks[frame]) for frame in chosen]
        drawings = [draw_landmarks(points, self.image_size) for _, points in pairs]
        return {
            "images": to_tensor([image for image, _ in pairs]),
            "landmark_images": to_tensor(drawings),
            "landmarks": torch.from_numpy(np.stack([points for _, points in pairs])),
            "clip": index,
        }

    def plain_transform(self, image: Image.Image, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        box = CropBox(0, 0, image.width)
        return crop_image(np.asarray(image), box, self.image_size), to_crop(points, box, self.image_size)

    def random_transform(self):
        mirror, greyscale, irisless = (
            random() < probability for probability in (0.5, GREYSCALE_PROBABILITY, IRISLESS_PROBABILITY)
        )
        zoom, *factors = uniform(*ZOOM_RANGE), *(uniform(*COLOUR_RANGE) for _ in range(3))
        shift = uniform(-MAX_SHIFT, MAX_SHIFT), uniform(-MAX_SHIFT, MAX_SHIFT)

        def transform(image: Image.Image, points: np.ndarray):
            side = image.width
            left, top = (side * (0.5 + offset - zoom / 2) for offset in shift)
            box = CropBox(left, top, side * zoom)
            pixels = Image.fromarray(crop_image(np.asarray(image), box, self.image_size))
            for enhance, factor in zip(
                (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
            ):
                pixels = enhance(pixels).enhance(0 if greyscale and enhance is ImageEnhance.Color else factor)
            pixels, points = np.asarray(pixels), to_crop(points, box, self.image_size)
            if mirror:
                pixels, points = pixels[:, ::-1], points[FLIP] * [-1, 1] + [self.image_size, 0]
            if irisless:
                points = points.copy()
                points[IRISES] = np.nan
            return pixels, points.astype(np.float32)

        return transform


def expression_distance(points: np.ndarray, others: np.ndarray) -> float:
    """How differently eyes and mouth are shaped in two frames of a clip (78 x 2 each), wherever they are; pixels."""
    parts = [(points - others)[part] for part in (RIGHT_EYE, LEFT_EYE, INNER_LIPS)]
    return sum(np.abs(part - part.mean(axis=0)).mean() for part in parts)


def random() -> float:
    return torch.rand(()).item()


def uniform(low: float, high: float) -> float:
    return low + (high - low) * random()


def to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # N x 3 x S x S
