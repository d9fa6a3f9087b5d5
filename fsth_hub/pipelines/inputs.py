"""Arguments that cannot work are refused before any work is done."""

import numpy as np

from ..checks import check_choice, check_flags, check_number
from ..landmarks.motion import check_motion
from ..landmarks.portrait_picking import MAX_SHOTS
from ..landmarks.smoothing import check_smoothing
from ..media.frames import FPS_RANGE
from ..media.writing import check_output_path
from ..models.configuration_fsth import FsthConfig
from ..models.errors import FsthError
from .driving import DrivingMotion, check_drive
from .names import MAX_SIZE
from .person import FsthPerson
from .pipeline_output import OUTPUT_TYPES


def check_size(size: int | None, config: FsthConfig) -> None:
    """Refuse (`FsthError`) a side of frames in pixels that a generator of this config does not generate."""
    if size is None:
        return
    check_number("size", size, config.image_size, MAX_SIZE, even=True)
    if not config.source_skips and size != config.image_size:
        raise FsthError(
            f"size must be left out: this model generates frames of {config.image_size} x {config.image_size} pixels "
            "alone, since it does not look at the portrait's own pixels (source_skips)."
        )


def check_batch_size(batch_size: int | None) -> None:
    """Refuse (`FsthError`) what is no number of frames to generate at once."""
    if batch_size is not None:
        check_number("batch_size", batch_size, 1, whole=True)


def check_inputs(
    config: FsthConfig,
    portraits,
    driving,
    *,
    motion,
    face_index,
    driving_face_index,
    shots,
    num_frames,
    fps,
    reference_frame,
    motion_strength,
    smoothing,
    regions,
    size,
    paste_back,
    output_path,
    output_type,
    callback_on_frame_end,
    batch_size,
    **flags,
) -> None:
    """Refuse (`FsthError`) arguments of [`FsthPipeline.__call__`] that cannot work with a generator of this config."""
    check_motion(motion, motion_strength)
    check_smoothing(smoothing)
    check_drive(driving, motion, regions)
    check_flags(paste_back=paste_back, **flags)
    check_choice("output_type", output_type, OUTPUT_TYPES)
    for index in [face_index] if np.ndim(face_index) == 0 else face_index:
        check_number("face_index", index, 0, whole=True)
    check_number("driving_face_index", driving_face_index, 0, whole=True)
    check_number("shots", shots, 1, MAX_SHOTS, whole=True)
    if num_frames is not None:
        check_number("num_frames", num_frames, 1, whole=True)
    if fps is not None:
        check_number("fps", fps, *FPS_RANGE)
    if reference_frame is not None:
        check_number("reference_frame", reference_frame, 0, whole=True)
    check_size(size, config)
    check_batch_size(batch_size)
    if isinstance(portraits, FsthPerson) and face_index != 0:
        raise FsthError("face_index chooses a face of portraits: leave it out where a person is given.")
    if isinstance(portraits, FsthPerson) and paste_back:
        raise FsthError(
            "paste_back needs the photograph, which a person or identity does not hold: give the portraits, or "
            "put the frames of `drive` into it with `PasteBack(photograph, box)`."
        )
    if isinstance(driving, DrivingMotion) and (fps is not None or driving_face_index != 0):
        raise FsthError(
            "fps and driving_face_index are for clips, not for motion that was read: give them to `read_driving`."
        )
    if output_path is not None:
        check_output_path(output_path)
        if output_type != "pil":
            raise FsthError("output_type is for frames that are returned: leave it out, or output_path.")
    if callback_on_frame_end is not None and not callable(callback_on_frame_end):
        raise FsthError(f"callback_on_frame_end must be a function, not {type(callback_on_frame_end)}.")
