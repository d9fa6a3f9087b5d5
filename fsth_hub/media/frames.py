"""Frames as they are given, of any kind that `load_image` takes, and as arrays."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..models.errors import FsthError, VideoError


if TYPE_CHECKING:
    from ..models.image_loading import Picture

Frames = Iterable["Picture"]  # also an array N x H x W x 3 or a tensor N x C x H x W

FPS_RANGE = (0.01, 1000)  # frames per second


def to_array(frame: "Picture") -> np.ndarray:
    """A frame as H x W x 3 uint8 RGB; `VideoError` for what is no picture."""
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
        return frame
    from ..models.image_loading import load_image  # here, so that files are read and written without PyTorch

    try:
        return load_image(frame, "A frame")
    except FsthError as error:
        raise VideoError(str(error)) from error


def to_arrays(frames: Frames) -> Iterator[np.ndarray]:
    """The frames as H x W x 3 uint8 RGB; `VideoError` for one that has not the first one's size."""
    shape = None
    for picture in map(to_array, frames):
        shape = shape or picture.shape
        if picture.shape != shape:
            raise VideoError(
                f"All frames must have one size, but {picture.shape[1]} x {picture.shape[0]} pixels follow on "
                f"{shape[1]} x {shape[0]}."
            )
        yield picture
