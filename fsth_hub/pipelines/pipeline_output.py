"""What the pipeline gives: a clip, and how it came about."""

from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from PIL import Image

from ..media.containers import ClipFile
from ..media.writing import write_clip
from ..models.cropping import CropBox
from ..models.errors import FsthError
from ..provenance.credentials import OUTPUT_METADATA, Origin, sign
from .driving import DrivingMotion


OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass(frozen=True)
class FsthReport:
    """How a clip came about.

    Args:
        num_frames: How many frames it has.
        fps: Frames per second.
        size: Side of the generated frames in pixels; of the head alone, where it was pasted back.
        max_size: What the first portrait has the pixels for.
        portrait_boxes: Where in each portrait the head was cut out, pixels of the portrait.
        driving_box: The same of the driving clip.
        frames_without_face: The frames in which the driver's face was not found; the last pose is held there.
        shots: First frame of each of the driving clip's shots, and the one after its last.
        sound: Whether the driving clip has sound.
        watermark: Whether the frames carry the visible watermark.
        credentials: Whether the file is signed, or will be when it is saved.
        engine: What the networks were computed by, "torch" or "openvino".
        seconds: What each stage took: "embed", "landmarks", "frames".
    """

    num_frames: int
    fps: float
    size: int
    max_size: int
    portrait_boxes: tuple[CropBox, ...]
    driving_box: CropBox
    frames_without_face: tuple[int, ...]
    shots: tuple[tuple[int, int], ...]
    sound: bool
    watermark: bool
    credentials: bool
    engine: str
    seconds: dict[str, float]

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


@dataclass
class FsthPipelineOutput(BaseOutput):
    """
    Args:
        frames (`list[list[PIL.Image.Image]]`, `np.ndarray` or `torch.Tensor`, *optional*):
            One clip, `frames[0]`, as `output_type` asks: a list of pictures, N x H x W x 3 float32 or N x 3 x H x W
            float32, both in [0, 1]; `None` if it was streamed to `output_path`.
        fps (`float`): frames per second.
        audio_from (`Path`, `bytes` or file object, *optional*): the file that holds the driver's sound.
        report ([`FsthReport`]): its sizes, crop boxes, seconds per stage, and the frames without a face.
        origin ([`Origin`], *optional*): what the Content Credentials of a saved clip tell; `None` for none.
        driving ([`DrivingMotion`]): what drove it.
    """

    frames: list[list[Image.Image]] | np.ndarray | torch.Tensor | None
    fps: float
    audio_from: ClipFile | None
    report: FsthReport
    origin: Origin | None
    driving: DrivingMotion

    def to_tuple(self) -> tuple:
        """Every field in order, also what is `None`."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def save(self, path: str | Path) -> int:
        """Write the clip as mp4, with the driver's sound, or gif; returns the number of frames."""
        if self.frames is None:
            raise FsthError("The clip has already been written, to the `output_path` that was given.")
        finish = None if self.origin is None else partial(sign, origin=self.origin)
        return write_clip(path, self.frames[0], self.fps, self.audio_from, OUTPUT_METADATA, finish)


def as_output_type(
    pictures: list[Image.Image], output_type: str
) -> list[list[Image.Image]] | np.ndarray | torch.Tensor:
    """A clip as diffusers' video pipelines give one; see [`FsthPipelineOutput`]."""
    if output_type == "pil":
        return [pictures]
    array = VideoProcessor.pil_to_numpy(pictures)  # N x H x W x 3
    return array[None] if output_type == "np" else VideoProcessor.numpy_to_pt(array)[None]
