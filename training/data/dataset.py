"""Episodes for meta-training: frames of one clip, some to learn the person from and one to generate.

Reads the shards that `prepare_dataset.py` writes: uncompressed tar files in WebDataset's layout, so that a frame is
found by its offset and a folder larger than memory can be sampled from. A clip is

    KEY.0000.jpg ... KEY.0063.jpg   head crops
    KEY.0000.png ... KEY.0063.png   their mattes, greyscale
    KEY.landmarks.npy               frames x 78 x 2 float32, pixels of the crop, NaN where absent
    KEY.json                        {"identity": ..., "source": ..., "times": [...]}
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import Dataset

from fsth_hub.models.cropping import CropBox, crop_repeating_edges, to_crop
from fsth_hub.models.errors import FsthError
from fsth_hub.models.landmark_drawing import rasterize_landmarks
from fsth_hub.models.landmark_layout import FLIP, INNER_LIPS, IRISES, LEFT_EYE, RIGHT_EYE


# Augmentation: the same sample for all frames of an episode, since they show one person in one light.
MAX_SHIFT = 0.06  # of the frame's side
ZOOM_RANGE = (0.88, 1.1)
COLOUR_RANGE = (0.75, 1.25)
LIGHT_RANGE = (0.8, 1.1)  # of each colour channel: teeth and eyes must take the light of the face
GREYSCALE_PROBABILITY = 0.05  # old photographs
IRISLESS_PROBABILITY = 0.15  # detectors that know no irises

HELD_OUT_STILLS = 50  # of so many stills one is never trained on


@dataclass
class ClipRecord:
    key: str
    identity: str
    shard: Path
    frames: list[tuple[int, int]]  # offset and size of each JPEG in the shard
    landmarks: np.ndarray  # frames x 78 x 2
    mattes: list[tuple[int, int]]  # as `frames`, of each PNG
    times: list[float]  # when each frame is shown, s

    def image(self, index: int) -> Image.Image:
        return self._open(*self.frames[index]).convert("RGB")

    def matte(self, index: int) -> Image.Image:
        """What is figure (255) and what background (0) of a frame."""
        return self._open(*self.mattes[index]).convert("L")

    def _open(self, offset: int, size: int) -> Image.Image:
        with open(self.shard, "rb") as file:
            file.seek(offset)
            return Image.open(io.BytesIO(file.read(size)))


def read_index(folder: str | Path) -> list[ClipRecord]:
    """The clips of all `*.tar` shards of a folder; `FsthError` where there are none."""
    shards = sorted(Path(folder).glob("*.tar"))
    if not shards:
        raise FsthError(f"There are no .tar shards in {folder}; make them with training/prepare_dataset.py.")
    clips = []
    for shard in shards:
        members: dict[str, dict] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                parts = members.setdefault(key, {"frames": [], "mattes": []})
                kinds = {"jpg": "frames", "png": "mattes"}
                if (kind := kinds.get(extension.rpartition(".")[2])) is not None:
                    parts[kind].append((member.offset_data, member.size))
                else:
                    parts[extension] = tar.extractfile(member).read()
        for key, parts in members.items():
            landmarks = np.load(io.BytesIO(parts["landmarks.npy"]), allow_pickle=False)
            if len(parts["mattes"]) != len(parts["frames"]):
                raise FsthError(f"{shard} has no mattes of {key}: make the shards anew with prepare_dataset.py.")
            about = json.loads(parts["json"])
            record = {"key": key, "identity": about["identity"], "times": about["times"], "shard": shard}
            clips.append(ClipRecord(**record, landmarks=landmarks, frames=parts["frames"], mattes=parts["mattes"]))
    return clips


def is_held_out_still(name: str) -> bool:
    """Whether a still (named by its number, such as 00050.jpg) is kept for validation: no training may ever use it."""
    return int(Path(name).stem) % HELD_OUT_STILLS == 0


class EpisodeKey(NamedTuple):
    """Names one episode: the same key gives the same episode, in whichever process and run it is asked for."""

    clip: int
    num_sources: int  # K
    seed: tuple[int, ...]  # of everything that is sampled


def sample_batches(
    clips: list[ClipRecord], args, first_step: int, num_processes: int, rank: int
) -> Iterator[list[EpisodeKey]]:
    """
    The batches of one process in order: for each step the generator's, whose frames the discriminator's first update
    shares, then those of the discriminator's further updates. People are sampled equally often, however many clips
    there are of them. What an update sees is a function of seed and step, and the processes share it among them: one
    process with a batch as large would see the same.

    Args:
        clips (`list[ClipRecord]`): of the dataset.
        args (`argparse.Namespace`): flags of meta_train.py.
        first_step (`int`): from 1.
        num_processes, rank (`int`): of how many processes this is which.
    """
    clips_of = Counter(clip.identity for clip in clips)
    probabilities = np.array([1 / clips_of[clip.identity] / len(clips_of) for clip in clips])
    for step in range(first_step, args.max_steps + 1):
        for update in range(max(1, args.discriminator_steps) if step > args.adversarial_start else 1):
            rng = np.random.default_rng([args.seed, step, update])
            num_sources = int(rng.integers(1, args.num_sources + 1)) if args.vary_sources else args.num_sources
            count = args.gradient_accumulation_steps * num_processes * args.batch_size
            chosen = rng.choice(len(clips), count, p=probabilities)
            keys = [
                EpisodeKey(int(clip), num_sources, (args.seed, step, update, position))
                for position, clip in enumerate(chosen)
            ]
            for start in range(rank * args.batch_size, count, num_processes * args.batch_size):
                yield keys[start : start + args.batch_size]


class EpisodeDataset(Dataset):
    """`dataset[EpisodeKey]` is an episode: a frame to generate, then K others of the same clip (section 3.1).

    Args:
        clips (`list[ClipRecord]`): of [`read_index`].
        image_size (`int`): side of the frames in pixels.
        max_sources (`int`): the largest K; clips with no more frames than that are left out.
        augment (`bool`, *optional*, defaults to `True`): shift, zoom, mirror, colours, irises left out.
        far_sources (`bool`, *optional*, defaults to `False`):
            Take the portraits from the half of the clip whose eyes and mouth are least like the frame's: most pairs of
            frames show no blink and no closing mouth, and from them no generator learns any.
    """

    def __init__(
        self,
        clips: list[ClipRecord],
        image_size: int,
        max_sources: int,
        augment: bool = True,
        far_sources: bool = False,
    ):
        self.clips = [clip for clip in clips if len(clip.frames) > max_sources]
        self.image_size = image_size
        self.augment = augment
        self.far_sources = far_sources

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: EpisodeKey) -> dict[str, torch.Tensor | int]:
        """
        Returns:
            `dict`: `images`, `landmark_images` and `mattes` ((1 + K) x 3, 3 and 1 x S x S uint8, the frame to generate
            first), `landmarks` ((1 + K) x 78 x 2 float32, pixels) and `clip` (the row of W).
        """
        index, num_sources, seed = key
        rng = np.random.default_rng(seed)
        clip = self.clips[index]
        target, *others = rng.permutation(len(clip.frames)).tolist()
        if self.far_sources:
            distances = expression_distances(clip.landmarks[others], clip.landmarks[target])
            far = np.argsort(-distances, kind="stable")[: max(num_sources, len(others) // 2)]
            others = [others[position] for position in rng.permutation(far)]
        transform = self.random_transform(rng) if self.augment else self.plain_transform
        frames = [target, *others[:num_sources]]
        images, mattes, landmarks = zip(
            *(transform(clip.image(frame), clip.matte(frame), clip.landmarks[frame]) for frame in frames), strict=True
        )
        return {
            "images": to_tensor(images),
            "landmark_images": to_tensor([rasterize_landmarks(points, self.image_size) for points in landmarks]),
            "mattes": to_tensor([matte[..., None] for matte in mattes]),
            "landmarks": torch.from_numpy(np.stack(landmarks)),
            "clip": index,
        }

    def plain_transform(self, image: Image.Image, matte: Image.Image, points: np.ndarray) -> tuple:
        box = CropBox(0, 0, image.width)
        pixels, matte = (crop_repeating_edges(np.asarray(picture), box, self.image_size) for picture in (image, matte))
        return pixels, matte, to_crop(points, box, self.image_size)

    def random_transform(self, rng: np.random.Generator):
        mirror, greyscale, irisless = rng.random(3) < (0.5, GREYSCALE_PROBABILITY, IRISLESS_PROBABILITY)
        zoom, factors = rng.uniform(*ZOOM_RANGE), rng.uniform(*COLOUR_RANGE, size=3)
        shift, light = rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=2), rng.uniform(*LIGHT_RANGE, size=3)

        def transform(image: Image.Image, matte: Image.Image, points: np.ndarray):
            side = image.width
            left, top = (side * (0.5 + offset - zoom / 2) for offset in shift)
            box = CropBox(left, top, side * zoom)
            pixels, matte = (
                crop_repeating_edges(np.asarray(picture), box, self.image_size) for picture in (image, matte)
            )
            pixels = Image.fromarray(pixels)
            for enhance, factor in zip(
                (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
            ):
                pixels = enhance(pixels).enhance(0 if greyscale and enhance is ImageEnhance.Color else factor)
            pixels, points = np.asarray(pixels), to_crop(points, box, self.image_size)
            if not greyscale:
                pixels = (pixels * light).clip(0, 255).round().astype(np.uint8)
            if mirror:
                pixels, matte = pixels[:, ::-1], matte[:, ::-1]
                points = points[FLIP] * [-1, 1] + [self.image_size, 0]
            if irisless:
                points = points.copy()
                points[IRISES] = np.nan
            return pixels, matte, points.astype(np.float32)

        return transform


def expression_distances(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How unlike eyes and mouth of frames (N x 78 x 2) are to those of one (78 x 2), wherever they are; N, pixels."""
    parts = [points[:, part] - target[part] for part in (RIGHT_EYE, LEFT_EYE, INNER_LIPS)]  # N x n x 2
    return sum(np.abs(part - part.mean(axis=1, keepdims=True)).mean(axis=(1, 2)) for part in parts)


def to_tensor(images: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # N x C x S x S
