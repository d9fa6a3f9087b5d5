"""Pictures of any kind, read as plain RGB. PyTorch, which takes seconds, is not imported."""

import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Union

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from .colour import to_srgb
from .errors import FsthError, FsthNotFoundError


if TYPE_CHECKING:
    import torch


Picture = Union[str, os.PathLike, bytes, BinaryIO, Image.Image, np.ndarray, "torch.Tensor"]  # noqa: UP007

MAX_PIXELS = 64_000_000  # far more than a portrait needs; a small file can unpack to much more (a decompression bomb)
# Of the profile of a PNG, and of each text in it, bytes unpacked: Pillow's own bound of 1 MB is less than printers'
# profiles have, and programs that keep their settings in pictures.
MAX_PNG_TEXT = 32 * 2**20

KINDS = "a file (path, bytes or file object), a PIL image, an array H x W x 3 or a tensor C x H x W"  # for messages

# Named, because Pillow would also start Ghostscript for whatever says that it is PostScript.
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")


def list_pictures(pictures: Picture | Iterable[Picture]) -> list[Picture]:
    """
    One picture or several as a list, as [`load_image`] takes each: also of an array N x H x W x 3 or a tensor
    N x C x H x W. File objects become their bytes, so that they can be read again.
    """
    if isinstance(pictures, np.ndarray) or _is_tensor(pictures):
        pictures = pictures if pictures.ndim == 4 else [pictures]
    elif isinstance(pictures, str | os.PathLike | bytes | Image.Image) or hasattr(pictures, "read"):
        pictures = [pictures]
    elif not isinstance(pictures, Iterable):
        raise FsthError(f"Pictures must be {KINDS}, or a list of those, not {type(pictures)}.")
    return [_contents(picture) if hasattr(picture, "read") else picture for picture in pictures]


def load_image(image: Picture, name: str = "The picture") -> np.ndarray:
    """Read a picture of any kind as plain RGB.

    Args:
        image: A file's path, its bytes, or a file object opened in binary mode (also HEIC and AVIF; the first picture
            of an animation), a PIL image, an array H x W, H x W x 1, 3 or 4 of uint8, uint16 or float in [0, 1], or a
            tensor H x W or C x H x W of the same. The camera's orientation and an embedded colour profile are applied.
            What is transparent becomes white, as on a web page: what people saw when they chose the picture.
        name: What messages call it; a file goes by its own name.

    Returns:
        H x W x 3 uint8, sRGB, upright.

    Raises:
        FsthError: It is no picture that can be read; [`FsthNotFoundError`], an `OSError`, where there is no file.
    """
    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, MAX_PNG_TEXT)
    if hasattr(image, "read"):
        image = _contents(image)
    if isinstance(image, str | os.PathLike):
        name = Path(image).name
    if isinstance(image, str | os.PathLike | bytes):
        with _open(image, name) as file:
            image = _decode(file, name)
    elif isinstance(image, Image.Image):
        image = _decode(image, name)
    elif _is_tensor(image):
        shape, image = tuple(image.shape), image.detach().cpu()
        if image.ndim == 3:
            image = image.movedim(0, -1)
        if image.ndim not in (2, 3) or image.ndim == 3 and image.shape[2] not in (1, 3, 4):
            raise FsthError(f"{name} must be H x W or C x H x W where it is a tensor, C being 1, 3 or 4, not {shape}.")
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise FsthError(f"{name} must be {KINDS}, not {type(image)}.")
    return _to_rgb8(image, name)


def _is_tensor(picture) -> bool:
    torch = sys.modules.get("torch")  # where there is a tensor, it was imported
    return torch is not None and isinstance(picture, torch.Tensor)


def _contents(file: BinaryIO) -> bytes:
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)
    data = file.read()
    if not isinstance(data, bytes):
        raise FsthError("A picture's file object must give bytes: open the file in binary mode ('rb').")
    return data


def _open(source: str | os.PathLike | bytes, name: str) -> Image.Image:
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    elif not Path(source).is_file():
        hint = "download it first and give the file" if "://" in str(source) else "check the path"
        raise FsthNotFoundError(f"There is no picture at {source}: {hint}.")
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
        formats = FORMATS
    except ImportError:  # where only networks are trained, or this file was loaded without its package
        formats = [name for name in FORMATS if name != "HEIF"]
    try:
        return Image.open(source, formats=formats)
    except Image.DecompressionBombError as error:
        raise FsthError(f"{name} is too large: give a picture below 64 megapixels.") from error
    except Exception as error:  # Pillow raises nearly anything for damaged files
        _check_text(name, error)
        raise FsthError(f"{name} is not a picture that can be read (jpg, png, webp, heic, ...).") from error


def _decode(image: Image.Image, name: str) -> np.ndarray:
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        raise FsthError(f"{name} is too large ({size}): give a picture below 64 megapixels.")
    try:
        image.load()
        image = _upright(image)
        # Pillow's own conversion clips 16 bits and floats to 255 instead of scaling them.
        if image.mode == "F":
            return np.asarray(image)
        if image.mode.startswith("I"):
            deep, information = np.asarray(image).clip(0, 65535).astype(np.uint16), image.info
            image = Image.fromarray(_to_8_bits(deep))
            image.info["icc_profile"] = information.get("icc_profile")
        return np.asarray(to_srgb(image))
    except Exception as error:
        _check_text(name, error)
        raise FsthError(f"{name} is damaged: it begins like a picture but cannot be decoded.") from error


def _check_text(name: str, error: Exception) -> None:
    """Say so where Pillow gave up at a PNG's text or profile."""
    if "MAX_TEXT" in str(error):
        limit = MAX_PNG_TEXT // 2**20
        raise FsthError(
            f"{name} carries a text or colour profile of more than {limit} MB: save the picture without it."
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image
    except Exception:  # of damaged Exif data; the picture is whole, and says nothing of its orientation
        return image


def _to_8_bits(image: np.ndarray) -> np.ndarray:
    return (image / 257).round().astype(np.uint8)


def _to_rgb8(image: np.ndarray, name: str) -> np.ndarray:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.size == 0:
        shape = image.shape
        raise FsthError(f"{name} must be H x W or H x W x C where it is an array, C being 1, 3 or 4, not {shape}.")
    if image.dtype.kind == "f":
        if not (image.min() >= -1e-3 and image.max() <= 1 + 1e-3):  # so that NaN fails too
            raise FsthError(f"{name} has float values outside [0, 1]: scale it, or give uint8.")
        image = (image.clip(0, 1) * 255).round().astype(np.uint8)
    elif image.dtype == np.uint16:
        image = _to_8_bits(image)
    elif image.dtype != np.uint8:
        raise FsthError(f"{name} must hold uint8, uint16 or float in [0, 1], not {image.dtype}.")
    if image.shape[2] == 4:
        alpha = image[..., 3:] / np.float32(255)
        image = (image[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, image.shape[:2] + (3,)))
