"""From any picture to what the networks take, and back: the one place that knows pixel ranges."""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, TypedDict, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin

# diffusers finds out how to load a component by looking for its base class in the component's own module
from transformers import ImageProcessingMixin  # noqa: F401
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import image_size_validator, tensor_type_validator
from transformers.utils import TensorType

from .colour import to_srgb
from .cropping import CropBox, crop_box, crop_image, to_crop
from .errors import FsthError, FsthNotFoundError
from .landmark_drawing import rasterize_landmarks
from .landmark_layout import NUM_POINTS


Picture = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor
Pixels = TypeVar("Pixels", np.ndarray, torch.Tensor)

MAX_PIXELS = 64_000_000  # far more than a portrait needs; a small file can unpack to much more (a decompression bomb)
# Of the profile of a PNG, and of each text in it, bytes unpacked: Pillow's own bound of 1 MB is less than printers'
# profiles have, and programs that keep their settings in pictures.
MAX_PNG_TEXT = 32 * 2**20

KINDS = "a file (path, bytes or file object), a PIL image, an array H x W x 3 or a tensor C x H x W"  # for messages

# Named, because Pillow would also start Ghostscript for whatever says that it is PostScript.
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")


def normalize(pixels: Pixels) -> Pixels:
    """From what pictures hold, 0 to 255 as floats, to what the networks see, -1 to 1."""
    return pixels / 127.5 - 1


def denormalize(values: Pixels) -> Pixels:
    """From what the networks see, -1 to 1, to what pictures hold, 0 to 255, neither rounded nor clamped."""
    return (values + 1) * 127.5


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """From -1 to 1, what lies beyond being clamped, to uint8."""
    return denormalize(images.float()).round().clamp(0, 255).to(torch.uint8)


def list_pictures(pictures: Picture | Iterable[Picture]) -> list[Picture]:
    """
    One picture or several as a list, as [`load_image`] takes each: also of an array N x H x W x 3 or a tensor
    N x C x H x W. File objects become their bytes, so that they can be read again.
    """
    if isinstance(pictures, np.ndarray | torch.Tensor):
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
    elif isinstance(image, torch.Tensor):
        shape, image = tuple(image.shape), image.detach().cpu()
        if image.ndim == 3:
            image = image.movedim(0, -1)
        if image.ndim not in (2, 3) or image.ndim == 3 and image.shape[2] not in (1, 3, 4):
            raise FsthError(f"{name} must be H x W or C x H x W where it is a tensor, C being 1, 3 or 4, not {shape}.")
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise FsthError(f"{name} must be {KINDS}, not {type(image)}.")
    return _to_rgb8(image, name)


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
        return ImageOps.exif_transpose(image)
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


class FsthImageProcessorKwargs(TypedDict, total=False):
    do_resize: bool | None
    size: Annotated[int | dict[str, int] | None, image_size_validator()]
    do_rescale: bool | None
    do_normalize: bool | None
    return_tensors: Annotated[str | TensorType | None, tensor_type_validator()]


class FsthImageProcessor(PilBackend):
    """Makes model inputs of portraits and landmarks, and pictures of model outputs.

    ```python
    embedding = embedder(**processor(portraits, landmarks)).embedding
    sources = generator.encode_sources(**processor(portraits, landmarks, return_landmarks=True))
    ```

    Args:
        size (`int` or `dict`, *optional*, defaults to 256): Side of the square pictures that the networks see.
        do_resize (`bool`, *optional*, defaults to `True`): `False` for pictures that are square and of one size.
        do_rescale (`bool`, *optional*, defaults to `True`): From 0..255 to 0..1.
        do_normalize (`bool`, *optional*, defaults to `True`): From 0..1 to -1..1, which the networks take.
    """

    valid_kwargs = FsthImageProcessorKwargs
    model_input_names = ["images", "landmark_images"]
    size = {"height": 256, "width": 256}
    do_resize = do_rescale = do_normalize = True

    @property
    def side(self) -> int:
        """Side of the square in pixels."""
        return self.size["height"]

    def crop(
        self, image: np.ndarray, points: np.ndarray, box: CropBox | None = None
    ) -> tuple[np.ndarray, np.ndarray, CropBox]:
        """Cut the square around a head out of a picture.

        Args:
            image: H x W x 3 uint8.
            points: 78 x 2, pixels of the picture.
            box: The square; by default the one that fits the points.

        Returns:
            The crop, side x side x 3 uint8; the points in pixels of the crop, 78 x 2 float32; the square.
        """
        box = box or crop_box(points)
        return crop_image(image, box, self.side), to_crop(points, box, self.side), box

    def preprocess(
        self,
        images: Picture | Sequence[Picture] | Sequence[Sequence[Picture]],
        landmarks: np.ndarray | Sequence | None = None,
        return_landmarks: bool = False,
        return_tensors: str | TensorType | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Make model inputs of pictures that are already cropped.

        Args:
            images: A picture, or K of one person, or for each of B people K pictures (nested lists, an array
                B x K x H x W x 3 or a tensor B x K x C x H x W); each all that `load_image` takes; resized to `size`.
            landmarks: 78 x 2 for each picture, nested alike; x then y, pixels of the given picture; NaN is left out.
            return_landmarks: Return them too, in pixels of the resized picture, for [`FsthGenerator.encode_sources`].
            return_tensors: As everywhere in transformers, defaults to PyTorch's.

        Returns:
            `images`, B x K x 3 x side x side float32 in [-1, 1]. With landmarks also `landmark_images`, their
            drawings of the same shape and range, and if asked for `landmarks`, B x K x 78 x 2 float32.
        """
        return super().preprocess(images, landmarks, return_landmarks, return_tensors=return_tensors, **kwargs)

    def rasterize(self, landmarks: np.ndarray | Sequence[np.ndarray]) -> torch.Tensor:
        """Rasterize landmarks for the networks.

        Args:
            landmarks: B x 78 x 2 (or 78 x 2 for one), pixels of a picture of `size`.

        Returns:
            B x 3 x side x side float32 in [-1, 1].
        """
        points = np.asarray(landmarks, np.float32).reshape(-1, NUM_POINTS, 2)
        return torch.from_numpy(normalize(self._drawings(points, self.side)))

    def postprocess(
        self, images: torch.Tensor, output_type: Literal["np", "pil"] = "np"
    ) -> list[np.ndarray] | list[Image.Image]:
        """Make pictures of what the generator gives.

        Args:
            images: B x 3 x H x W, [-1, 1]; what is beyond is clamped.
            output_type: "np" for H x W x 3 uint8, "pil" for PIL images.

        Returns:
            B pictures.
        """
        arrays = list(to_pixels(images).permute(0, 2, 3, 1).cpu().numpy())
        return [Image.fromarray(array) for array in arrays] if output_type == "pil" else arrays

    def to_dict(self) -> dict:
        """As in transformers, but without a map to code that is not saved along."""
        values = super().to_dict()
        if self._auto_class is None:
            values.pop("auto_map", None)
        return values

    # What PilBackend calls.

    def _standardize_kwargs(self, size: int | dict[str, int] | SizeDict | None = None, **kwargs) -> dict:
        kwargs = super()._standardize_kwargs(size=size, default_to_square=True, **kwargs)
        if kwargs["size"].height is None or kwargs["size"].height != kwargs["size"].width:
            raise FsthError(f"The networks see square pictures: give the size as one number, not {size}.")
        return kwargs

    def _validate_preprocess_kwargs(self, **kwargs) -> None:
        """Nothing: the library asks for a factor, a mean and a deviation, which are the networks' own, no choice."""

    def _prepare_images_structure(self, images, **kwargs) -> list[list[Picture]]:
        """For each person a list of pictures, of one length."""
        nested = getattr(images, "ndim", 0) == 5
        if isinstance(images, list | tuple) and images:
            nested = isinstance(images[0], list | tuple) or getattr(images[0], "ndim", 0) == 4
        people = [list_pictures(pictures) for pictures in images] if nested else [list_pictures(images)]
        counts = {len(pictures) for pictures in people}
        if len(counts) != 1 or counts == {0}:
            raise FsthError("Give at least one picture, and of several people as many of each.")
        return people

    def process_image(self, image: Picture, **kwargs) -> np.ndarray:
        return np.moveaxis(load_image(image), -1, 0)  # 3 x H x W

    def _preprocess_image_like_inputs(
        self, images, landmarks, return_landmarks, do_resize, size: SizeDict, do_rescale, do_normalize, **kwargs
    ) -> BatchFeature:
        people = self._prepare_image_like_inputs(images)
        batch = len(people), len(people[0])
        given = [picture for person in people for picture in person]
        pictures = [self.resize(p, size, PILImageResampling.BICUBIC) for p in given] if do_resize else given
        side = pictures[0].shape[1]
        if any(picture.shape != (3, side, side) for picture in pictures):
            raise FsthError("Pictures must be square and of one size where do_resize is False.")

        def to_model(pixels: np.ndarray) -> np.ndarray:
            if do_rescale:
                pixels = normalize(pixels) if do_normalize else pixels / 255
            elif do_normalize:
                pixels = 2 * pixels - 1
            return pixels.reshape(*batch, 3, side, side)

        data = {"images": to_model(np.stack(pictures).astype(np.float32))}
        if landmarks is not None:
            points = np.asarray(landmarks, np.float32)
            if points.shape[-2:] != (NUM_POINTS, 2):
                raise FsthError(f"landmarks must be {NUM_POINTS} x 2 for each picture, not {points.shape}.")
            points = points.reshape(-1, NUM_POINTS, 2)
            if len(points) != len(pictures):
                raise FsthError(f"There are {len(pictures)} pictures but landmarks for {len(points)}.")
            points = points * np.array([(side / p.shape[2], side / p.shape[1]) for p in given], np.float32)[:, None]
            data["landmark_images"] = to_model(self._drawings(points, side))
            if return_landmarks:
                data["landmarks"] = points.reshape(*batch, NUM_POINTS, 2)
        elif return_landmarks:
            raise FsthError("return_landmarks needs landmarks: give them too.")
        return BatchFeature(data, tensor_type=kwargs["return_tensors"])

    def _drawings(self, points: np.ndarray, side: int) -> np.ndarray:
        """N x 3 x side x side float32, 0 to 255, of points N x 78 x 2."""
        return np.stack([np.moveaxis(rasterize_landmarks(p, side), -1, 0) for p in points]).astype(np.float32)
