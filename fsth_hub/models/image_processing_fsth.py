"""From any picture to what the networks take, and back: the one place that knows pixel ranges."""

from collections.abc import Sequence
from typing import Annotated, Literal, TypedDict, TypeVar

import numpy as np
import torch
from PIL import Image

# diffusers finds out how to load a component by looking for its base class in the component's own module
from transformers import ImageProcessingMixin  # noqa: F401
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import image_size_validator, tensor_type_validator
from transformers.utils import TensorType

from .cropping import CropBox, crop_box, crop_image, to_crop
from .errors import FsthError
from .image_loading import Picture, list_pictures, load_image
from .landmark_drawing import rasterize_landmarks
from .landmark_layout import NUM_POINTS


Pixels = TypeVar("Pixels", np.ndarray, torch.Tensor)


def normalize(pixels: Pixels) -> Pixels:
    """From what pictures hold, 0 to 255 as floats, to what the networks see, -1 to 1."""
    return pixels / 127.5 - 1


def denormalize(values: Pixels) -> Pixels:
    """From what the networks see, -1 to 1, to what pictures hold, 0 to 255, neither rounded nor clamped."""
    return (values + 1) * 127.5


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """From -1 to 1, what lies beyond being clamped, to uint8."""
    return denormalize(images.float()).round().clamp(0, 255).to(torch.uint8)


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
            B x 3 x side x side float32 in [-1, 1], in channels_last.
        """
        points = np.asarray(landmarks, np.float32).reshape(-1, NUM_POINTS, 2)
        drawings = np.stack([rasterize_landmarks(face, self.side) for face in points])
        return normalize(torch.from_numpy(drawings).permute(0, 3, 1, 2).float())

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
