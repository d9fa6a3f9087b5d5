"""One picture of a person with another expression."""

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image

from ..checks import check_flags
from ..landmarks.expression import Expression
from ..media.pictures import SUFFIX, write_picture
from ..media.texts import check_suffix
from ..models.errors import FsthError
from ..models.image_loading import list_pictures
from ..provenance.credentials import PICTURE_METADATA, Origin, check_credentials, sign
from ..provenance.watermark import add_watermark
from ..saving import check_file
from .driving import DrivingMotion
from .inputs import check_size
from .person import FsthPerson
from .portrait_picking import Portrait
from .portraits import embed_pictures


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
        check_suffix(output_path, SUFFIX)
        check_file(output_path)
    signed = output_path is not None and credentials and check_credentials()

    pictures = None if isinstance(portraits, FsthPerson) else list_pictures(portraits)
    person, canvas = portraits, None
    if pictures is not None:
        person, canvas, size = embed_pictures(pipe, pictures, face_index, crop, paste_back, size)
    (frame,) = pipe.drive(person, DrivingMotion.from_expressions([expression]), size=size)
    frame = frame if canvas is None else canvas(frame)
    picture = Image.fromarray(add_watermark(frame) if watermark else frame)
    if output_path is not None:
        origin = Origin.of(pipe.model_name, person, pictures) if signed else None
        write_picture(output_path, picture, PICTURE_METADATA, partial(sign, origin=origin) if signed else None)
    return picture
