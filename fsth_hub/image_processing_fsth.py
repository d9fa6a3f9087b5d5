"""From any picture to what the networks take, and back: the one place that knows pixel ranges."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps

# diffusers finds out how to load a component by looking for its base class in the component's own module
from transformers import ImageProcessingMixin  # noqa: F401
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import image_size_validator, tensor_type_validator
from transformers.utils import TensorType

from .cropping import CropBox, crop_box, crop_image, to_crop
from .errors import FsthError
from .landmark_drawing import draw_landmarks


Picture = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor

MAX_PIXELS = 64_000_000  # far more than a portrait needs; a small file can unpack to much more (a decompression bomb)

# Named, because Pillow would also start Ghostscript for whatever says that it is PostScript.
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")


def load_image(image: Picture) -> np.ndarray:
    """Read a picture of any kind as plain RGB.

    Args:
        image: A file's path (also HEIC and AVIF; the first picture of an animation), a PIL image, an array H x W,
            H x W x 1, 3 or 4 of uint8, uint16 or float in [0, 1], or a tensor C x H x W of the same. The camera's
            orientation is applied. What is transparent becomes white, as on a web page: what people saw when they
            chose the picture.

    Returns:
        H x W x 3 uint8, upright.

    Raises:
        FsthError: It is no picture that can be read; the message names the file.
    """
    name = "The picture"
    if isinstance(image, str | os.PathLike):
        name = Path(image).name
        with _open(image) as file:
            image = _decode(file, name)
    elif isinstance(image, Image.Image):
        image = _decode(image, name)
    elif isinstance(image, torch.Tensor) and image.ndim == 3:
        image = image.detach().cpu().movedim(0, -1)
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise FsthError(f"{name} must be a file, a PIL image, an array or a C x H x W tensor, not {type(image)}.")
    return _to_rgb8(image, name)


def _open(path: str | os.PathLike) -> Image.Image:
    if not Path(path).is_file():
        hint = "download it first and give the file" if "://" in str(path) else "check the path"
        raise FsthError(f"There is no picture at {path}: {hint}.")
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
        formats = FORMATS
    except ImportError:  # where only networks are trained, or this file was loaded without its package
        formats = [name for name in FORMATS if name != "HEIF"]
    try:
        return Image.open(path, formats=formats)
    except Image.DecompressionBombError as error:
        raise FsthError(f"{Path(path).name} is too large: give a picture below 64 megapixels.") from error
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise FsthError(f"{Path(path).name} is not a picture that can be read (jpg, png, webp, heic, ...).") from error


def _decode(image: Image.Image, name: str) -> np.ndarray:
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        raise FsthError(f"{name} is too large ({size}): give a picture below 64 megapixels.")
    try:
        image = ImageOps.exif_transpose(image)
        # Pillow's own conversion clips 16 bits and floats to 255 instead of scaling them.
        if image.mode.startswith("I"):
            return np.asarray(image).clip(0, 65535).astype(np.uint16)
        if image.mode == "F":
            return np.asarray(image)
        return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    except Exception as error:
        raise FsthError(f"{name} is damaged: it begins like a picture but cannot be decoded.") from error


def _to_rgb8(image: np.ndarray, name: str) -> np.ndarray:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.size == 0:
        raise FsthError(f"{name} must be H x W, or H x W x 1, 3 or 4 (a tensor C x H x W), not {image.shape}.")
    if image.dtype.kind == "f":
        if not (image.min() >= -1e-3 and image.max() <= 1 + 1e-3):  # so that NaN fails too
            raise FsthError(f"{name} has float values outside [0, 1]: scale it, or give uint8.")
        image = (image.clip(0, 1) * 255).round().astype(np.uint8)
    elif image.dtype == np.uint16:
        image = (image / 257).round().astype(np.uint8)
    elif image.dtype != np.uint8:
        raise FsthError(f"{name} must hold uint8, uint16 or float in [0, 1], not {image.dtype}.")
    if image.shape[2] == 4:
        alpha = image[..., 3:] / np.float32(255)
        image = (image[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, image.shape[:2] + (3,)))


class FsthImageProcessorKwargs(TypedDict, total=False):
    size: Annotated[int | dict[str, int] | None, image_size_validator()]
    return_tensors: Annotated[str | TensorType | None, tensor_type_validator()]


class FsthImageProcessor(PilBackend):
    """Makes model inputs of portraits and landmarks, and pictures of model outputs.

    Its only option is the size: range and colours are the networks' own, and no choice.

    Args:
        size (`int` or `dict`, *optional*, defaults to 256): Side of the square pictures that the networks see.
    """

    valid_kwargs = FsthImageProcessorKwargs
    model_input_names = ["pixel_values", "landmark_images", "landmarks"]
    size = {"height": 256, "width": 256}

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
        images: Picture | Sequence[Picture],
        landmarks: np.ndarray | Sequence[np.ndarray] | None = None,
        return_tensors: str | TensorType | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Make model inputs of pictures that are already cropped.

        Args:
            images: A picture or B of them, all that `load_image` takes; resized to `size`.
            landmarks: B x 78 x 2, x then y, pixels of the given picture; NaN is not drawn.
            return_tensors: As everywhere in transformers, defaults to PyTorch's.

        Returns:
            `pixel_values`, B x 3 x side x side float32 in [-1, 1]. With landmarks also `landmark_images`, their
            drawings of the same shape and range, and `landmarks`, B x 78 x 2 float32 in pixels of the resized picture.
        """
        return super().preprocess(images, landmarks, return_tensors=return_tensors, **kwargs)

    def draw(self, landmarks: np.ndarray | Sequence[np.ndarray]) -> torch.Tensor:
        """Draw landmarks for the networks.

        Args:
            landmarks: B x 78 x 2 (or 78 x 2 for one), pixels of a picture of `size`.

        Returns:
            B x 3 x side x side float32 in [-1, 1].
        """
        return torch.from_numpy(np.stack(self._drawings(_batch(landmarks), self.side)))

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

    def _prepare_images_structure(self, images: Picture | Sequence[Picture], **kwargs) -> list[Picture]:
        if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
            return list(images)
        return list(images) if isinstance(images, list | tuple) else [images]

    def process_image(self, image: Picture, **kwargs) -> np.ndarray:
        return np.moveaxis(load_image(image), -1, 0)  # 3 x H x W

    def _preprocess_image_like_inputs(self, images, landmarks, size: SizeDict, **kwargs) -> BatchFeature:
        pictures = self._prepare_image_like_inputs(images)
        data = {
            "pixel_values": [to_model(self.resize(p, size, PILImageResampling.BICUBIC)) for p in pictures],
        }
        if landmarks is not None:
            points = _batch(landmarks)
            if len(points) != len(pictures):
                raise FsthError(f"There are {len(pictures)} pictures but landmarks for {len(points)}.")
            scale = [(size.width / p.shape[2], size.height / p.shape[1]) for p in pictures]
            points = points * np.array(scale, np.float32)[:, None]
            data |= {"landmarks": points, "landmark_images": self._drawings(points, size.height)}
        return BatchFeature(data, tensor_type=kwargs["return_tensors"])

    def _drawings(self, points: np.ndarray, side: int) -> list[np.ndarray]:
        return [to_model(np.moveaxis(draw_landmarks(p, side), -1, 0)) for p in points]


def to_model(pixels: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """uint8 of any shape to float32 in [-1, 1]."""
    return (pixels.float() if isinstance(pixels, torch.Tensor) else pixels.astype(np.float32)) / 127.5 - 1


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """[-1, 1] of any shape, what is beyond being clamped, to uint8."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _batch(landmarks: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """B x 78 x 2 float32."""
    points = np.asarray(landmarks, np.float32)
    return points[None] if points.ndim == 2 else points
