"""Frames on their way out: marked, shown to whoever listens, and written or kept."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..media.containers import ClipFile
from ..media.writing import write_clip
from ..provenance.credentials import OUTPUT_METADATA, Origin, sign
from ..provenance.watermark import add_watermark
from .pipeline_output import as_output_type


if TYPE_CHECKING:
    from .pipeline_fsth import FsthPipeline


def deliver(
    pipe: "FsthPipeline",
    frames: Iterable[np.ndarray],
    total: int,
    fps: float,
    audio_from: ClipFile | None,
    origin: Origin | None,
    *,
    watermark: bool,
    callback: Callable | None,
    output_path,
    output_type: str,
):
    """
    Write generated frames (H x W x 3 uint8 each, as they come) or return them as `output_type` asks, `None` if they
    were written. The arguments are those of [`FsthPipeline.__call__`]; without an origin the file is not signed.
    """

    def finished():
        with pipe.progress_bar(total=total) as progress:
            for index, frame in enumerate(frames):
                frame = add_watermark(frame) if watermark else frame
                if callback is not None:
                    callback(pipe, index, total, frame)
                yield frame
                progress.update()

    if output_path is None:
        return as_output_type([Image.fromarray(frame) for frame in finished()], output_type)
    finish = None if origin is None else partial(sign, origin=origin)
    write_clip(output_path, finished(), fps, audio_from, OUTPUT_METADATA, finish)
    return None
