"""Pictures that were made, written as PNG."""

import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..saving import whole_file
from .texts import check_suffix


SUFFIX = ".png"


def write_picture(
    path: str | os.PathLike,
    picture: Image.Image,
    metadata: dict[str, str],
    finish: Callable[[Path], object] | None = None,
) -> None:
    """Write a picture as PNG, whole or not at all.

    Args:
        path: Where to write; its name must end in ".png".
        picture: RGB.
        metadata: Fields of the file.
        finish: Called with the complete file before it takes its place, to sign it.

    Raises:
        FsthError: It cannot be written.
    """
    fields = PngInfo()
    for key, text in metadata.items():
        fields.add_text(key.title(), text)
    check_suffix(path, SUFFIX)
    with whole_file(path) as unfinished:
        picture.save(unfinished, "PNG", pnginfo=fields)
        if finish is not None:
            finish(unfinished)
