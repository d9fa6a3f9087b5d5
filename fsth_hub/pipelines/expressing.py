"""One picture of a person with another expression."""

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..checks import check_flags
from ..landmarks.expression import Expression
from ..media.paste_back import PasteBack
from ..media.pictures import SUFFIX, write_picture
from ..media.whole_files import check_writable
from ..models.errors import FsthError
from ..models.image_processing_fsth import list_pictures
from ..provenance.credentials import PICTURE_METADATA, Origin, check_credentials, sign
from ..provenance.watermark import add_watermark
from .driving import DrivingMotion
from .inputs import check_size
from .person import MAX_SIZE, FsthPerson, Portrait


if TYPE_CHECKING:
    from .pipeline_fsth import FsthPipeline


def express(
    pipe: "FsthPipeline",
    portraits: Portrait | Sequence[Portrait] | FsthPerson,
    expression: Expression,
    *,
    crop: bool,
    face_index: int | Sequence[int],
    size: int | None,
    paste_back: bool,
    output_path: str | os.PathLike | None,
    watermark: bool,
    credentials: bool,
) -> Image.Image:
    """As in [`~FsthPipeline.express`]."""
    if not isinstance(expression, Expression):
        raise FsthError(
            f"The expression must be an Expression, such as Expression(smile=0.6), not {type(expression)}."
        )
    check_flags(crop=crop, paste_back=paste_back, watermark=watermark, credentials=credentials)
    check_size(size, pipe.generator.config)
    if isinstance(portraits, FsthPerson) and paste_back:
        raise FsthError("paste_back needs the photograph, which a person or identity does not hold: give portraits.")
    if output_path is not None:
        check_writable(output_path, SUFFIX)
    signed = output_path is not None and credentials and check_credentials()

    pictures = None if isinstance(portraits, FsthPerson) else list_pictures(portraits)
    person = portraits if pictures is None else pipe.embed(pictures, face_index, crop)
    canvas = PasteBack(pictures[0], person.boxes[0]) if paste_back else None
    if canvas is not None and size is None and pipe.generator.config.source_skips:
        size = int(np.clip(canvas.box.side, pipe.size, MAX_SIZE)) // 2 * 2
    (frame,) = pipe.drive(person, DrivingMotion.from_expressions([expression]), size=size)
    frame = frame if canvas is None else canvas(frame)
    picture = Image.fromarray(add_watermark(frame) if watermark else frame)
    if output_path is not None:
        origin = Origin.of(pipe.model_name, person, pictures) if signed else None
        write_picture(output_path, picture, PICTURE_METADATA, partial(sign, origin=origin) if signed else None)
    return picture
