"""Portrait, driver and result beside each other, to see what followed what."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..media.containers import ClipFile
from ..media.frames import Frames
from ..media.landmark_overlay import overlaid
from ..media.reading import Clip, open_clip
from ..media.writing import write_clip
from ..models.cropping import crop_image
from ..models.image_loading import Picture, load_image
from ..provenance.credentials import OUTPUT_METADATA, sign


if TYPE_CHECKING:
    from .driving import DrivingMotion
    from .pipeline_output import FsthPipelineOutput

MAX_HEIGHT = 720  # pixels: three pictures of that height are as wide as a screen


def side_by_side(
    portrait: Picture,
    driving_clip: ClipFile | Frames | Clip,
    driving: "DrivingMotion",
    frames: Frames,
    size: int,
    height: int | None = None,
) -> Iterator[np.ndarray]:
    """
    Lay out the portrait, the driver's head under its landmarks, and the result, one frame at a time: the clip is
    read again as the frames come.

    Args:
        portrait: The photograph or its crop, all that `load_image` takes; shown whole.
        driving_clip: The clip of which `driving` was read; no iterator, which has been read then.
        driving: Of `FsthPipeline.read_driving`.
        frames: The result, such as `FsthPipeline.drive` gives it, one for each of the clip.
        size: The side of the crop whose pixels the landmarks of `driving` count (`FsthPipeline.size`), whatever the
            size of the frames.
        height: Of the pictures in pixels, made even; by default the frames' own, at most 720.

    Yields:
        height x W x 3 uint8 RGB; W is even and the same for all.

    Raises:
        FsthError: The portrait or the clip cannot be read.
    """
    driving_clip = open_clip(driving_clip, fps=driving.fps, max_frames=len(driving.landmarks))
    portrait, still = load_image(portrait), None
    # frames come last: zip takes none that it has no driver for
    for driver, points, frame in zip(driving_clip, driving.landmarks, frames, strict=False):
        frame = load_image(frame)
        if still is None:
            height = (height or min(frame.shape[0], MAX_HEIGHT)) // 2 * 2
            still = _to_height(portrait, height)
        head = crop_image(driver, driving.box, height)
        if points is not None:
            head = overlaid(head, points * (height / size))
        yield np.hstack([still, head, _to_height(frame, height)])


def write_side_by_side(
    path: str | Path,
    portrait: Picture,
    driving_clip: ClipFile | Frames | Clip,
    output: "FsthPipelineOutput",
    frames: Frames,
    size: int,
    whole: bool = False,
) -> int:
    """
    Write the layout of a finished clip, with its sound and, where it is signed, credentials of its own.

    Args:
        path: The .mp4 or .gif to write.
        portrait: The first portrait, all that `load_image` takes.
        driving_clip, size: As in [`side_by_side`].
        output: What the pipeline gave for it.
        frames: Of `output`; if they were streamed, those of the file, read again.
        whole: Show the portrait whole, not its head alone: a result that was pasted back, or a head crop.

    Returns:
        The number of frames.

    Raises:
        FsthError: The portrait or the clip cannot be read, or the file not be written or signed.
    """
    if not whole:
        side = output.report.size  # as large as the frames, which show as much of it
        portrait = crop_image(load_image(portrait), output.report.portrait_boxes[0], side)
    rows = side_by_side(portrait, driving_clip, output.driving, frames, size)
    finish = None if output.origin is None else partial(sign, origin=output.origin)
    return write_clip(path, rows, output.fps, output.audio_from, OUTPUT_METADATA, finish)


def _to_height(picture: np.ndarray, height: int) -> np.ndarray:
    """A picture of another height, and of an even width."""
    width = max(2, 2 * round(picture.shape[1] * height / picture.shape[0] / 2))
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
